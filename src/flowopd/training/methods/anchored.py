"""The samples of an update that the anchor sees, where it sees a share of them."""

import math
from collections.abc import Sequence

import numpy as np

from flowopd.tasks.batches import Sample

SLACK = 1e-9  # of a share that is a fraction written as a decimal


class Anchored:
    """A share of every task's samples, drawn over those of all processes.

    It follows from the samples' seeds, and neither from their order nor from how they are divided.
    """

    def __init__(self, samples: Sequence[Sample], share: float, rng: np.random.Generator) -> None:
        self.weights: dict[str, float] = {}
        """By task, what each sample that is seen stands for: the sum is unbiased."""
        self._seeds: set[int] = set()
        if share == 0:
            return
        for task in sorted({sample.task for sample in samples}):
            seeds = sorted(sample.seed for sample in samples if sample.task == task)
            count = math.ceil(share * len(seeds) - SLACK)
            self.weights[task] = len(seeds) / count
            self._seeds.update(seeds[i] for i in rng.permutation(len(seeds))[:count])

    def __contains__(self, sample: Sample) -> bool:
        return sample.seed in self._seeds
