"""What stands in for the parts of a run that planning has no use for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowopd.rewards.reward import RewardFunction, Rewards
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.methods.sft import POOL_SEED, SFT
from flowopd.training.ranks import Ranks


class ImaginedRanks(Ranks):
    """The first of so many processes, the others of which are not there."""

    def __init__(self, count: int) -> None:
        self.index, self.count, self.main = 0, count, True

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """They travel in one piece."""
        if self.count > 1:
            torch.cat([tensor.reshape(-1) for tensor in tensors])

    def wait(self) -> None:
        """Nobody is waited for."""


class ImaginedReward(RewardFunction):
    """Rewards without scorers: different numbers, so that no group is without spread."""

    def __init__(self) -> None:
        super().__init__([], {})

    def __call__(
        self, images: NDArray[np.uint8], records: Sequence[PromptRecord], tasks: Sequence[str]
    ) -> Rewards:
        return Rewards(np.linspace(0.0, 1.0, len(records)), {}, {})


class ImaginedSFT(SFT):
    """Draws one pass of each teacher's pictures, and keeps none."""

    def _fill(self, task: str) -> None:
        from flowopd.tasks.batches import Batches

        context = self.context
        source = Batches(
            {task: context.records[task]},
            {task: 1.0},
            prompts=self.config.images_per_task,
            seed=context.config.seed + POOL_SEED,
        )
        samples = source.draw()
        for latents in self._drawn(task, samples[: context.config.batch.micro]):
            self._latents[task] = latents.expand(len(samples), *latents.shape)
        self._records[task] = [sample.record for sample in samples]
