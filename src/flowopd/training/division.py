"""How the samples of an update are divided: over processes, and there over passes.

The update does not depend on it: what is random belongs to samples, and what compares samples
compares those of all processes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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

        A process with fewer samples of the task than passes leaves the last ones out; where a pass
        is a collective, it has to fill them.
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


def cut(items: Sequence[T], passes: int) -> list[list[T]]:
    """The items of the passes, dealt in turn: their numbers differ by one at most."""
    return [list(items[first::passes]) for first in range(min(passes, len(items)))]
