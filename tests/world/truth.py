"""Rendered truth: pictures whose content is known."""

import numpy as np

from flowopd.tasks.prompts import PromptRecord
from flowopd.world.grammar import training_prompt
from flowopd.world.render import render, to_uint8


def rendered(task: str, count: int, seed: int = 0) -> tuple[np.ndarray, list[PromptRecord]]:
    """Pictures [count, 32, 32, 3] and the prompts that they show."""
    rng = np.random.default_rng(seed)
    records = [training_prompt(task, rng) for _ in range(count)]
    return np.stack([to_uint8(render(record, rng)) for record in records]), records


def noisy(images: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=images.shape) * level
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def mean(scores: list, metric: str) -> float:
    return float(np.mean([score.values[metric] for score in scores]))
