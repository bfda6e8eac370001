"""The jobs of a call: which wait, which are out and where, and what was found."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowopd.rewards.scorer import Scores
from flowopd.rewards.service.cutting import together
from flowopd.rewards.service.replica import Replica
from flowopd.rewards.work.calls import Unit

Request = asyncio.Task[list[Scores]]
DOUBTS = 2
"""Servers that may fail on a job before its units are tried one by one, beside nothing else."""


@dataclass(eq=False)
class Job:
    """Units that are sent together."""

    units: Sequence[Unit]
    failures: int = 0
    running: dict[Request, Replica] = field(default_factory=dict)
    since: float = 0.0
    """When it was sent last."""

    @property
    def pictures(self) -> list[int]:
        return [picture for unit in self.units for picture in unit]


class Jobs:
    """A job waits, or is out with one server (two, when it takes long and another is idle).

    It comes back when a server fails, after the others that wait. What fails again is tried in its
    smallest parts, each with a server of its own, so that no picture loses its score for another's
    sake.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        missing: Callable[[str], Scores],
        *,
        attempts: int,
        hedge_seconds: float,
    ) -> None:
        self.found: dict[int, Scores] = {}
        self.problem = ""
        """Why pictures are without a score, if any are: the last of the reasons."""
        self.changed = asyncio.Event()
        """Set, and replaced by another, when there may be something new to do."""
        self._open = dict.fromkeys(jobs)
        self._waiting = deque(jobs)
        self._at: dict[Replica, set[Job]] = {}
        self._missing, self._attempts, self._hedge_seconds = missing, attempts, hedge_seconds

    @property
    def done(self) -> bool:
        return not self._open

    def is_open(self, job: Job) -> bool:
        return job in self._open

    def next(self, replica: Replica, room: int) -> tuple[Job | None, float | None]:
        """A job for a server, or the seconds until there may be one (None: not before a change)."""
        job = self._first_waiting(replica)
        if job is None:
            return self._to_overtake(replica, room)
        if len(job.pictures) <= room:
            return job, None
        first, *others = self._cut(job, room)
        self._waiting.extendleft(reversed(others))
        return first, None

    def begin(self, job: Job, request: Request, replica: Replica) -> None:
        job.running[request] = replica
        job.since = time.monotonic()
        self._at.setdefault(replica, set()).add(job)
        self._notify()

    def end(self, job: Job, request: Request) -> None:
        self._at[job.running.pop(request)].discard(job)
        self._notify()

    def settle(self, job: Job, scores: Sequence[Scores]) -> None:
        del self._open[job]
        self.found.update(zip(job.pictures, scores, strict=True))
        self._notify()

    def come_back(self, job: Job) -> None:
        """To be the next, as nothing is wrong with it."""
        if self.is_open(job) and not job.running:
            self._waiting.appendleft(job)
            self._notify()

    def failed(self, job: Job, trouble: str) -> None:
        """Another try, in smaller parts if need be, unless the job fails wherever it goes."""
        job.failures += 1
        if not self.is_open(job) or job.running:
            return
        if job.failures >= self._attempts:
            reason = f"no server could score it, the last of {job.failures} being {trouble}"
            self._give_up(job, reason)
        elif self._is_doubtful(job):
            self._waiting.extend(self._cut(job, 1))
        else:
            self._waiting.append(job)
        self._notify()

    def refused(self, job: Job, trouble: str) -> None:
        """What is about the pictures is about some of them."""
        if not self.is_open(job) or job.running:
            return
        if len(job.units) > 1:
            self._waiting.extendleft(reversed(self._cut(job, 1)))
        else:
            self._give_up(job, trouble)
        self._notify()

    def stop(self, reason: str) -> None:
        """What has no scores yet gets none."""
        for job in list(self._open):
            self._give_up(job, reason)

    def _first_waiting(self, replica: Replica) -> Job | None:
        """The first that waits; a doubtful one only for a server that has nothing to do."""
        here = self._at.get(replica)
        if here and any(self._is_doubtful(job) for job in here):
            return None
        for job in self._waiting:
            if not (here and self._is_doubtful(job)):
                self._waiting.remove(job)
                return job
        return None

    def _to_overtake(self, replica: Replica, room: int) -> tuple[Job | None, float | None]:
        """Of the jobs at the server that takes longest, the last, for one that has nothing to do.

        It may only stand behind another that holds that server up, and would hold up this one, too.
        """
        if self._at.get(replica):
            return None, None
        alone = [
            job
            for job in self._open
            if len(job.running) == 1 and len(job.pictures) <= room and self._may_have_two(job)
        ]
        slow = min(alone, key=lambda job: job.since, default=None)
        if slow is None:
            return None, None
        wait = slow.since + self._hedge_seconds - time.monotonic()
        if wait > 0:
            return None, wait
        there = [job for job in alone if set(job.running.values()) == set(slow.running.values())]
        return max(there, key=lambda job: job.since), None

    def _is_doubtful(self, job: Job) -> bool:
        return job.failures >= max(1, min(DOUBTS, self._attempts - 1))

    def _may_have_two(self, job: Job) -> bool:
        """Not one that is to be cut, or given up, if the server that has it fails."""
        alone = len(job.units) == 1
        return not job.failures or (alone and job.failures < self._attempts - 1)

    def _cut(self, job: Job, most: int) -> list[Job]:
        """The job in parts of so many pictures, or of one unit, in its place."""
        parts = [Job(units, job.failures) for units in together(job.units, most)]
        del self._open[job]
        self._open.update(dict.fromkeys(parts))
        return parts

    def _give_up(self, job: Job, reason: str) -> None:
        self.problem = reason
        self.settle(job, [self._missing(reason) for _ in job.pictures])

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
