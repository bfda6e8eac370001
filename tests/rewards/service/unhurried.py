"""A scorer for servers in other processes: it takes its time, and writes down what it saw."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

SECONDS = 0.02


class Unhurried:
    name, version, tasks, grouped = "unhurried", 1, None, False
    metrics = (MetricInfo("level", 0, 1), MetricInfo("place"))

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        log = os.environ.get("UNHURRIED_LOG")
        if log:
            with Path(log).open("a") as file:
                file.write("".join(f"{os.getpid()} {record.prompt}\n" for record in records))
            time.sleep(SECONDS * len(records))
        return [
            Scores({"level": float(image.mean()) / 255, "place": int(record.tag) / 3})
            for image, record in zip(images, records, strict=True)
        ]
