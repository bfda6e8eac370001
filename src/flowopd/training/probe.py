"""Pictures of fixed prompts and seeds, drawn and scored now and then while a run trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowopd.evaluation.protocol import Job, check_scorers
from flowopd.evaluation.results import row_metrics
from flowopd.evaluation.score import Begin, begin_scoring
from flowopd.policy.generate import Encode, Images, generate
from flowopd.policy.protocol import VelocityModel
from flowopd.reporting.contact_sheet import contact_sheet
from flowopd.rewards.detectors import detect
from flowopd.rewards.scorer import Scorer
from flowopd.rewards.started import Started
from flowopd.rewards.work.calls import call_now
from flowopd.tasks.prompt_set import read_set
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.config import ProbeConfig

MOST_PIXELS = 1536  # of a panel's side, about


@dataclass(frozen=True)
class Probe:
    """The prompts and scorers, read before anything is loaded."""

    config: ProbeConfig
    records: Sequence[PromptRecord]
    counts: Sequence[int]
    scorers: Sequence[Scorer]

    @classmethod
    def read(cls, config: ProbeConfig, started: Started) -> "Probe":
        sets = [(entry, read_set(entry, config.limit)) for entry in config.prompts]
        records = [record for _, found in sets for record in found]
        counts = [entry.images_per_prompt or 1 for entry, found in sets for _ in found]
        job = Job(records, counts, started.all(config.scorers), {})
        check_scorers(config.scorers, job)
        return cls(config, records, counts, job.scorers)

    def take(
        self,
        model: VelocityModel,
        encode: Encode,
        panel: Path | None,
        batch_size: int,
        *,
        begin: Begin | None = call_now,
    ) -> dict[str, Any]:
        """Scores (means by metric) and detectors; the panel, if any, is written as a picture.

        Without a way to `begin` calls, the pictures are only drawn.
        """
        index = [i for i, count in enumerate(self.counts) for _ in range(count)]
        records = [self.records[i] for i in index]
        images = self._draw(model, encode, [record.prompt for record in records], batch_size)
        if begin is None:
            return {}
        counts = [self.counts[i] for i in index]
        found = begin_scoring(
            self.scorers, images, records, counts, index, begin=begin, tolerant=True
        ).result()
        lines = [
            {"prompt_index": i, "tag": record.tag, **entry}
            for i, record, entry in zip(index, records, found, strict=True)
        ]
        metrics = row_metrics(self.scorers, lines)
        scores = {
            name: round(entry["mean"], 6)
            for name, entry in metrics.items()
            if "/" not in name and entry["mean"] is not None
        }
        if panel is not None:
            self._panel(images, records, panel)
        detectors = {name: round(value, 6) for name, value in detect(images).items()}
        return {"scores": scores, "detectors": detectors}

    def _draw(
        self, model: VelocityModel, encode: Encode, prompts: list[str], batch_size: int
    ) -> Images:
        seeds = [self.config.seed + number for number in range(len(prompts))]
        batches = generate(
            model, prompts, seeds, self.config.sampling, batch_size=batch_size, encode=encode
        )
        return np.concatenate(list(batches))

    def _panel(self, images: Images, records: Sequence[PromptRecord], path: Path) -> None:
        count = min(self.config.panel, len(images))
        if not count:
            return
        chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
        pictures = [Image.fromarray(images[i]) for i in chosen]
        sheet = contact_sheet(
            pictures, [records[i].prompt for i in chosen], columns=math.ceil(math.sqrt(count * 1.5))
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.thumbnail((MOST_PIXELS, MOST_PIXELS))
        sheet.save(path)
