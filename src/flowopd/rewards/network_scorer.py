"""What the scorers with a network of their own here have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards import model_files
from flowopd.rewards.drawn import RED_SQUARE, draw
from flowopd.rewards.scorer import About, MetricInfo, Scores
from flowopd.rewards.settings import ScorerSettings
from flowopd.tasks.prompts import PromptRecord

N = TypeVar("N")
S = TypeVar("S", bound=ScorerSettings)


class NetworkScorer(ABC, Generic[S, N]):
    """Gives each picture one number, by itself and its prompt, through a network loaded once."""

    name: str
    version = 1
    metrics: tuple[MetricInfo, ...]
    tasks: frozenset[str] | None = None
    grouped = False
    models: tuple[str, ...]
    """By the settings that name them, as ``{model}``."""
    licence: str
    cost: str

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self._network: N | None = None

    @abstractmethod
    def _open(self) -> N:
        """The network, from its files."""

    @abstractmethod
    def _read(self, network: N, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[float]:
        """One number for each of the pictures [B, H, W, 3]."""

    @property
    def about(self) -> About:
        return model_files.about(self.settings, self.models, self.licence, self.cost)

    def load(self) -> None:
        self._ready()

    def close(self) -> None:
        """Give the network's memory back."""
        self._network = None

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        network = self._ready()
        found: list[Scores] = []
        for start in range(0, len(records), self.settings.batch_size):
            batch = slice(start, start + self.settings.batch_size)
            prompts = [record.prompt for record in records[batch]]
            numbers = self._read(network, images[batch], prompts)
            found += [self._scores(number) for number in numbers]
        return found

    def example(self) -> tuple[NDArray[np.uint8], PromptRecord]:
        return draw(RED_SQUARE), PromptRecord(RED_SQUARE.prompt)

    def _ready(self) -> N:
        network = self._network
        if network is None:
            network = self._network = self._open()
        return network

    def _scores(self, number: float) -> Scores:
        (info,) = self.metrics
        if math.isfinite(number):
            return Scores({info.name: number})
        return Scores({info.name: None}, {info.name: f"the network gave {number}"})
