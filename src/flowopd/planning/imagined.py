"""What stands in for parts of a run where it is rehearsed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowopd.planning.memory import LiveMemory
from flowopd.planning.needs import Phase
from flowopd.planning.outline import Outline
from flowopd.policy.protocol import PromptEmbeds
from flowopd.rewards.reward import RewardFunction, Rewards
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.methods.sft import SFT
from flowopd.training.ranks import Ranks


class Followed:
    """A model whose encoding and decoding say in which phase of a run the memory is in use."""

    def __init__(self, model: Outline, memory: LiveMemory) -> None:
        self._memory, self._model = memory, model
        self._encode, self._decode = model.encode_prompts, model.decode
        self._encoding: int | None = None
        model.encode_prompts = self.encode  # type: ignore[method-assign]
        model.decode = self.decode  # type: ignore[method-assign]

    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The encoders run once, for however many prompts: these go through them in turn."""
        with self._memory.during(Phase.ENCODE):
            if self._encoding is None:
                with self._memory.watch() as watch:
                    self._model.run_encoders()
                self._encoding = watch.above
            self._memory.reach(self._encoding)
            return self._encode(prompts)

    def decode(self, latents: Tensor) -> Tensor:
        outer = self._memory.phase
        own = outer if outer in (Phase.PROBE, Phase.SAMPLE) else Phase.DECODE
        with self._memory.during(own):
            return self._decode(latents)


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
        samples = self._pool(task)
        for latents in self._drawn(task, samples[: self.context.config.batch.micro]):
            self._latents[task] = latents.expand(len(samples), *latents.shape)
        self._records[task] = [sample.record for sample in samples]
