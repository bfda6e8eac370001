"""How the samples of an update are divided: over processes, and there over passes.

The update does not depend on it: what is random belongs to samples, and what compares samples
compares those of all processes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flowopd.errors import FlowOPDError
from flowopd.tasks.batches import deal, least_shares

if TYPE_CHECKING:
    from flowopd.training.config import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Division:
    """Of a batch with `counts` samples by task; a pass has samples of one task."""

    counts: Mapping[str, int]
    processes: int
    micro: int
    """The most samples of a pass."""

    def passes(self, task: str) -> int:
        """The passes of every process for the samples of a task.

        A process with fewer samples of the task than passes leaves the last ones out.
        """
        return math.ceil(self._most(task) / self.micro)

    @property
    def fewest(self) -> int:
        """The images of the process that has fewest; others have one more at most."""
        return sum(self.counts.values()) // self.processes

    @property
    def most(self) -> int:
        return math.ceil(sum(self.counts.values()) / self.processes)

    @property
    def all_passes(self) -> int:
        return sum(self.passes(task) for task in self.counts)

    @property
    def largest_pass(self) -> int:
        return max(math.ceil(self._most(task) / self.passes(task)) for task in self.counts)

    def sentence(self, unit: tuple[str, str] = ("device", "devices")) -> str:
        """For whoever starts the run."""
        several = self.processes > 1
        images = str(self.most) if self.most == self.fewest else f"{self.fewest} or {self.most}"
        return (
            f"{self.processes} {unit[several]}: {images} images{' each' if several else ''} an "
            f"update, in {self.all_passes} pass{'es' if self.all_passes > 1 else ''} of up to "
            f"{self.largest_pass}"
        )

    def _most(self, task: str) -> int:
        return math.ceil(self.counts[task] / self.processes)


def require_full_passes(division: Division) -> None:
    """Refuse what leaves a process without samples in a pass: a student in shares needs all."""
    for task, count in division.counts.items():
        if count // division.processes < division.passes(task):
            raise FlowOPDError(
                f"The task {task!r} can have {count} images in an update, with which some of the "
                f"{division.processes} processes have none in a pass: with student.full all of "
                "them take part in every one. Use more batch.prompts or images_per_prompt, or "
                "fewer processes."
            )


def possible_counts(config: "TrainConfig") -> Iterator[dict[str, int]]:
    """Images by task of every update; where shares are adaptive, each task's on their own."""
    batch = config.batch
    shares = {name: task.share for name, task in config.tasks.items()}
    total, prompts = sum(shares.values()), batch.prompts
    if batch.shares == "adaptive" and batch.mixing == "mixed":
        for task, share in least_shares(shares).items():
            # A task owes less than a prompt, and is owed less than one by each of the others.
            least = max(1, math.floor(share * prompts - len(shares)) + 1)
            yield from ({task: n * batch.images_per_prompt} for n in range(least, prompts + 1))
        return
    debts = dict.fromkeys(shares, 0.0)
    even = {task: share / total for task, share in shares.items()}
    for _ in range(config.updates // getattr(config.algorithm, "updates_per_rollout", 1)):
        found = deal(debts, even, prompts, batch.mixing)
        yield {task: count * batch.images_per_prompt for task, count in found.items()}


def cut(items: Sequence[T], passes: int) -> list[list[T]]:
    """The items of the passes, dealt in turn: their numbers differ by one at most."""
    return [list(items[first::passes]) for first in range(min(passes, len(items)))]
