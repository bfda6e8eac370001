"""The pictures that the report shows side by side: the same prompts and seeds for every row."""

import json
from pathlib import Path

from PIL import Image

from flowopd.adapters import Switch
from flowopd.evaluation.run import Plan
from flowopd.files import replacing, write_atomic
from flowopd.models import opened
from flowopd.policy.generate import generate
from flowopd.policy.text_cache import through_cache
from flowopd.study.config import PanelConfig

PANEL, PANEL_RECORD = "panel", "panel.json"


def panel_size(panel: PanelConfig | None) -> int:
    return 0 if panel is None else len(panel.prompts) * len(panel.seeds)


def draw_panel(plan: Plan, panel: PanelConfig, folder: Path) -> None:
    """One picture of each prompt and seed, as the protocol samples, by the adapter of the plan."""
    config = plan.config
    places = [(prompt, seed) for prompt in panel.prompts for seed in panel.seeds]
    prompts, seeds = [prompt for prompt, _ in places], [seed for _, seed in places]
    entries = []
    with opened(config.model) as model:
        switch = Switch(model, plan.adapters)
        encode = through_cache(config.text_cache, model, panel.prompts)
        with switch.using(next(iter(plan.adapters.files), None)):
            batches = generate(
                model, prompts, seeds, config, batch_size=config.batch_size, encode=encode
            )
            images = (image for batch in batches for image in batch)
            for number, ((prompt, seed), image) in enumerate(zip(places, images, strict=True)):
                file = f"{PANEL}/{number:02d}.png"
                with replacing(folder / file) as temporary:
                    Image.fromarray(image).save(temporary, format="PNG")
                entries.append({"prompt": prompt, "seed": seed, "file": file})
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    write_atomic(folder / PANEL_RECORD, text + "\n")
