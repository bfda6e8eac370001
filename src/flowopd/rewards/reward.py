"""A reward: the weighted sum of metrics that scorers read off pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowopd.config import Config
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scorer, applies, check_record
from flowopd.tasks.prompts import PromptRecord


class RewardTerm(Config):
    """A metric's part of a reward: `weight · value / scale`."""

    weight: float = Field(1.0, allow_inf_nan=False)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """What brings the native value to about 0–1 (5 for a scale of 1 to 5)."""


Terms = Mapping[str, RewardTerm]


@dataclass(frozen=True)
class Rewards:
    """One reward a picture, NaN where it is missing, and the metrics that it was made from."""

    values: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    reasons: dict[int, str]
    """Why a picture has no reward."""


class RewardFunction:
    """The rewards of several tasks, each from the scorers that its terms need."""

    def __init__(self, scorers: Sequence[Scorer], tasks: Mapping[str, Terms]) -> None:
        self._tasks = dict(tasks)
        self._owners: dict[str, Scorer] = {}
        for scorer in scorers:
            for metric in scorer.metrics:
                if metric.name in self._owners:
                    raise FlowOPDError(
                        f"The scorers {self._owners[metric.name].name!r} and {scorer.name!r} both "
                        f"give the metric {metric.name!r}; keep one of them."
                    )
                self._owners[metric.name] = scorer
        for task, terms in tasks.items():
            self._check_terms(task, terms)

    def scorers(self) -> dict[str, int]:
        """The scorers that the rewards read, with their versions."""
        used = {metric for terms in self._tasks.values() for metric in terms}
        owners = {self._owners[metric].name: self._owners[metric].version for metric in used}
        return dict(sorted(owners.items()))

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
        values = np.zeros(len(records))
        reasons: dict[int, str] = {}
        parts: dict[str, NDArray[np.float64]] = {}
        for scorer in dict.fromkeys(self._owners.values()):
            names = {info.name for info in scorer.metrics}
            chosen = [i for i, task in enumerate(tasks) if names & self._tasks[task].keys()]
            if not chosen:
                continue
            scores = scorer.score(images[chosen], [records[i] for i in chosen])
            for i, score in zip(chosen, scores, strict=True):
                for metric in sorted(names & self._tasks[tasks[i]].keys()):
                    part = parts.setdefault(metric, np.full(len(records), np.nan))
                    value, term = score.values.get(metric), self._tasks[tasks[i]][metric]
                    if value is None or not math.isfinite(value):
                        reasons[i] = f"{metric}: {score.reasons.get(metric, 'no number')}"
                        values[i] = np.nan
                        continue
                    part[i] = value
                    values[i] += term.weight * value / term.scale
        return Rewards(values, parts, reasons)

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
