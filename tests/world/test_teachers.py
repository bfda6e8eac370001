"""The teachers that ship beside the base: whole, small, of this base, and good at their skill."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowopd.adapters import Switch, check_adapters
from flowopd.policy.adapter_files import check_adapter
from flowopd.policy.generate import SamplingConfig, generate
from flowopd.tasks.prompts import read_prompts, take
from flowopd.world.assets import FOLDER
from flowopd.world.model import WorldConfig
from flowopd.world.readers.compose import ComposeReader
from flowopd.world.readers.text import TextReader

TEACHERS = ("compose", "preference", "quality", "text")
PROMPTS = Path(__file__).parents[2] / "recipes" / "world" / "prompts"


@pytest.mark.parametrize("name", TEACHERS)
def test_they_are_whole_and_say_how_they_were_made(name: str) -> None:
    config, folder = WorldConfig(), FOLDER / f"teacher-{name}"
    files = check_adapter(folder, config.skeleton(), config.fingerprint())
    assert files.notes["fingerprint"] == config.fingerprint()
    assert files.notes["sha256"] == {"adapter_model.safetensors": files.sha256}
    assert files.notes["images"] > 1000
    assert files.notes["recipe"]["algorithm"]["name"] == "nft"
    assert "SHA-256" in str(files.notes["recipe"]["tasks"])
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000


@pytest.mark.parametrize("scorer", [ComposeReader(), TextReader()], ids=["compose", "text"])
def test_each_is_better_at_its_skill_than_the_base(scorer: ComposeReader | TextReader) -> None:
    """48 prompts: the true differences are above 0.2, the standard error about 0.08."""
    skill = scorer.metrics[0].name
    config = WorldConfig()
    adapters = check_adapters(config, {"teacher": FOLDER / f"teacher-{skill}"})
    model = config.open()
    switch = Switch(model, adapters)
    records = take(read_prompts(PROMPTS / f"{skill}.jsonl"), 48)
    sampling = SamplingConfig(steps=10, guidance=1.0)
    scores = {}
    for name in (None, "teacher"):
        with switch.using(name), torch.no_grad():
            prompts = [record.prompt for record in records]
            images = generate(model, prompts, list(range(48)), sampling, batch_size=48)
            found = scorer.score(np.concatenate(list(images)), records)
        scores[name] = np.mean([score.values[skill] for score in found])
    assert scores["teacher"] > scores[None] + 0.05
