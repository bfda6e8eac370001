"""A reward: the weighted sum of metrics that scorers read off pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowopd.config import Config
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scorer, Scores, applies, check_record
from flowopd.rewards.work.calls import attempt
from flowopd.tasks.prompts import PromptRecord


class RewardTerm(Config):
    """A metric's part of a reward: `weight · value / scale`."""

    weight: float = Field(1.0, allow_inf_nan=False)
    scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What brings the native value to about 0–1 (5 for a scale of 1 to 5); null: the metric's."""


Terms = Mapping[str, RewardTerm]
NOTHING = Scores({})


@dataclass(frozen=True)
class Rewards:
    """One reward a picture, NaN where it is missing, and the metrics that it was made from."""

    values: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    reasons: dict[int, str]
    """Why a picture has no reward."""


class Scored(NamedTuple):
    """What a scorer gave some of the pictures."""

    scorer: Scorer
    places: Sequence[int]
    scores: Sequence[Scores]


class RewardFunction:
    """The rewards of several tasks, each from the scorers that its terms need."""

    def __init__(self, scorers: Sequence[Scorer], tasks: Mapping[str, Terms]) -> None:
        self._tasks = dict(tasks)
        self._owners: dict[str, Scorer] = {}
        self.scales: dict[str, float] = {}
        """What each metric is divided by where a term says nothing else."""
        for scorer in scorers:
            for metric in scorer.metrics:
                if metric.name in self._owners:
                    raise FlowOPDError(
                        f"The scorers {self._owners[metric.name].name!r} and {scorer.name!r} both "
                        f"give the metric {metric.name!r}; keep one of them."
                    )
                self._owners[metric.name] = scorer
                self.scales[metric.name] = metric.scale
        for task, terms in tasks.items():
            self._check_terms(task, terms)

    @property
    def used(self) -> list[Scorer]:
        """The scorers that the rewards read."""
        metrics = {metric for terms in self._tasks.values() for metric in terms}
        return [
            scorer
            for scorer in dict.fromkeys(self._owners.values())
            if any(info.name in metrics for info in scorer.metrics)
        ]

    @property
    def grouped(self) -> bool:
        """Whether a reward depends on the other pictures of its prompt."""
        return any(scorer.grouped for scorer in self.used)

    def scale(self, metric: str, term: RewardTerm) -> float:
        """What the term divides the metric by."""
        return self.scales[metric] if term.scale is None else term.scale

    def check(self, task: str, records: Sequence[PromptRecord]) -> None:
        """Refuse prompts that a scorer of the task's reward cannot score."""
        for metric in self._tasks.get(task, {}):
            scorer = self._owners[metric]
            for record in records:
                if not applies(scorer, record):
                    raise FlowOPDError(
                        f"The task {task!r} is rewarded by {metric!r}, but {scorer.name!r} does "
                        f"not read prompts of the kind {record.task!r} ({record.prompt!r})."
                    )
                check_record(scorer.name, scorer, record)

    def __call__(
        self, images: NDArray[np.uint8], records: Sequence[PromptRecord], tasks: Sequence[str]
    ) -> Rewards:
        """The rewards of pictures [B, H, W, 3]; a missing part leaves the picture without one."""
        found = [
            Scored(scorer, chosen, attempt(scorer, images[chosen], [records[i] for i in chosen]))
            for scorer, chosen in self.needed(tasks)
        ]
        return self.rewards(found, tasks)

    def needed(self, tasks: Sequence[str]) -> list[tuple[Scorer, list[int]]]:
        """The scorers that pictures of these tasks need, each with the places of its pictures."""
        found = []
        for scorer in self.used:
            names = {info.name for info in scorer.metrics}
            chosen = [i for i, task in enumerate(tasks) if names & self._tasks[task].keys()]
            if chosen:
                found.append((scorer, chosen))
        return found

    def rewards(self, found: Sequence[Scored], tasks: Sequence[str]) -> Rewards:
        """From what the scorers found, in whatever parts; added up in the scorers' order.

        A picture that a scorer which it needs gave nothing has no reward.
        """
        values = np.zeros(len(tasks))
        reasons: dict[int, str] = {}
        parts: dict[str, NDArray[np.float64]] = {}
        given = {
            (id(one.scorer), i): score
            for one in found
            for i, score in zip(one.places, one.scores, strict=True)
        }
        for scorer, i, metric in self._read(tasks):
            part = parts.setdefault(metric, np.full(len(tasks), np.nan))
            term, score = self._tasks[tasks[i]][metric], given.get((id(scorer), i), NOTHING)
            value = score.values.get(metric)
            if value is None or not math.isfinite(value):
                reasons[i] = f"{metric}: {score.reasons.get(metric, 'no number')}"
                values[i] = np.nan
                continue
            part[i] = value
            values[i] += term.weight * value / self.scale(metric, term)
        return Rewards(values, parts, reasons)

    def _read(self, tasks: Sequence[str]) -> Iterator[tuple[Scorer, int, str]]:
        """Which metrics of which pictures are added up."""
        for scorer, chosen in self.needed(tasks):
            names = {info.name for info in scorer.metrics}
            for i in chosen:
                for metric in sorted(names & self._tasks[tasks[i]].keys()):
                    yield scorer, i, metric

    def _check_terms(self, task: str, terms: Terms) -> None:
        for metric in terms:
            if metric not in self._owners:
                known = ", ".join(self._owners) or "none (scorers is empty)"
                raise FlowOPDError(
                    f"The reward of the task {task!r} names the metric {metric!r}, which no scorer "
                    f"gives. The metrics are: {known}."
                )
        if terms and all(term.weight == 0 for term in terms.values()):
            raise FlowOPDError(f"The reward of the task {task!r} has no weight that is not 0.")
