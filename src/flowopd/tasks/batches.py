"""What each update is made from: prompts of every task by its share, in groups, with seeds.

Everything follows from the seed and counters, which a checkpoint keeps; the task of a sample is
written on the sample, so that nothing downstream counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord

SLOW = 0.9  # how much of the past an observed divergence keeps
NARROWEST, WIDEST = 0.25, 4.0  # what adaptive shares multiply the fixed ones by

Mixing = Literal["mixed", "alternating"]


@dataclass(frozen=True)
class Sample:
    """One picture to be: its prompt, the task that routes it, its group, and its noise."""

    record: PromptRecord
    task: str
    group: int
    number: int
    """Which of the task's records it is."""
    start_seed: int
    """Of the initial noise; the same within a group if that shares its noise."""
    seed: int
    """Of the noise on the way."""


class Batches:
    """Batches of `prompts` groups of `images_per_prompt` samples; a pure function of its state."""

    def __init__(
        self,
        records: Mapping[str, Sequence[PromptRecord]],
        shares: Mapping[str, float],
        *,
        prompts: int,
        images_per_prompt: int = 1,
        seed: int = 0,
        mixing: Mixing = "mixed",
        adaptive: bool = False,
        same_noise: bool = False,
    ) -> None:
        if set(records) != set(shares) or not records:
            raise FlowOPDError(
                f"Prompts are given for the tasks {sorted(records)} and shares for "
                f"{sorted(shares)}; they must be the same."
            )
        empty = [task for task, found in records.items() if not found]
        if empty:
            raise FlowOPDError(f"The task {empty[0]!r} has no prompts.")
        self._records = {task: list(found) for task, found in records.items()}
        self._shares = dict(shares)
        self._prompts, self._images = prompts, images_per_prompt
        self._seed, self._mixing = seed, mixing
        self._adaptive, self._same_noise = adaptive, same_noise
        self._drawn = 0
        self._cursors = dict.fromkeys(self._records, 0)
        self._debts = dict.fromkeys(self._records, 0.0)
        self._first: dict[str, float] = {}
        self._recent: dict[str, float] = {}

    def draw(self) -> list[Sample]:
        """The next batch, task by task."""
        samples: list[Sample] = []
        group = 0
        for task, count in deal(self._debts, self.shares(), self._prompts, self._mixing).items():
            for _ in range(count):
                samples += self._group(task, group)
                group += 1
        self._drawn += 1
        return samples

    def shares(self) -> dict[str, float]:
        """The share of the batch that each task has now; they add up to 1."""
        weights = {task: share * self._remaining(task) for task, share in self._shares.items()}
        total = sum(weights.values())
        return {task: weight / total for task, weight in weights.items()}

    def observe(self, divergences: Mapping[str, float]) -> None:
        """The tasks' divergences in an update, for adaptive shares."""
        for task, value in divergences.items():
            if not math.isfinite(value):
                continue
            self._first.setdefault(task, value)
            past = self._recent.get(task, value)
            self._recent[task] = SLOW * past + (1 - SLOW) * value

    def state(self) -> dict[str, Any]:
        return {
            "drawn": self._drawn,
            "cursors": dict(self._cursors),
            "debts": dict(self._debts),
            "first": dict(self._first),
            "recent": dict(self._recent),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        if set(state["cursors"]) != set(self._records):
            raise FlowOPDError(
                f"The saved batches are of the tasks {sorted(state['cursors'])}, these of "
                f"{sorted(self._records)}."
            )
        self._drawn = int(state["drawn"])
        self._cursors = {task: int(state["cursors"][task]) for task in self._records}
        self._debts = {task: float(state["debts"][task]) for task in self._records}
        self._first, self._recent = dict(state["first"]), dict(state["recent"])

    def _remaining(self, task: str) -> float:
        """How much of the task's first divergence is left, against the mean over tasks."""
        if not self._adaptive or set(self._recent) != set(self._shares):
            return 1.0
        left = {
            name: self._recent[name] / self._first[name] if self._first[name] > 0 else 0.0
            for name in self._shares
        }
        mean = sum(left.values()) / len(left)
        return float(np.clip(left[task] / mean, NARROWEST, WIDEST)) if mean > 0 else 1.0

    def _group(self, task: str, group: int) -> list[Sample]:
        number = self._next(task)
        starts, ways = [
            np.random.SeedSequence([self._seed, self._drawn, group, kind]).generate_state(
                self._images, np.uint64
            )
            for kind in range(2)
        ]
        return [
            Sample(
                record=self._records[task][number],
                task=task,
                group=group,
                number=number,
                start_seed=_small(starts[0 if self._same_noise else i]),
                seed=_small(ways[i]),
            )
            for i in range(self._images)
        ]

    def _next(self, task: str) -> int:
        """The task's prompts in an order of its own, shuffled anew each time through."""
        size = len(self._records[task])
        epoch, place = divmod(self._cursors[task], size)
        self._cursors[task] += 1
        tasks = list(self._records)
        rng = np.random.default_rng([self._seed, tasks.index(task), epoch, 2])
        return int(rng.permutation(size)[place])


def deal(
    debts: dict[str, float], shares: Mapping[str, float], prompts: int, mixing: Mixing
) -> dict[str, int]:
    """Whole prompts by task; what is owed by rounding stays in `debts` for the next batch."""
    if mixing == "alternating":
        for task, share in shares.items():
            debts[task] += share
        chosen = max(debts, key=lambda task: debts[task])
        debts[chosen] -= 1
        return {chosen: prompts}
    counts = dict.fromkeys(shares, 0)
    for task, share in shares.items():
        debts[task] += share * prompts
    for _ in range(prompts):
        chosen = max(debts, key=lambda task: debts[task])
        debts[chosen] -= 1
        counts[chosen] += 1
    return {task: count for task, count in counts.items() if count}


def least_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """What adaptive shares cannot fall below, whatever is observed."""
    total, widest = sum(shares.values()), min(WIDEST, len(shares))
    low = {task: NARROWEST * share for task, share in shares.items()}
    return {
        task: low[task] / (low[task] + widest * (total - share)) for task, share in shares.items()
    }


def _small(seed: np.uint64) -> int:
    """As torch's generators take it."""
    return int(seed >> np.uint64(1))
