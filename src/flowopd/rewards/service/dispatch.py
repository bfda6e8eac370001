"""Jobs over several servers: every picture gets one result, whichever server dies meanwhile."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores
from flowopd.rewards.service.replica import BusyError, DownError, Replica

Encode = Callable[[Sequence[int]], bytes]


@dataclass(eq=False)
class Job:
    """Pictures that are sent together."""

    pictures: Sequence[int]
    scores: list[Scores] | None = None
    failures: int = 0
    running: "dict[asyncio.Task[list[Scores]], Replica]" = field(default_factory=dict)
    since: float = 0.0
    """When it was sent last."""

    @property
    def done(self) -> bool:
        return self.scores is not None


@dataclass(frozen=True)
class Patience:
    connections: int
    """Requests at the same time to each server."""
    attempts: int
    """Servers that may fail on a job before its pictures stay without a score."""
    hedge_seconds: float
    """After which a job that is out is also given to another server that has nothing to do."""
    silent_seconds: float
    """For which all servers may be away."""
    busy_seconds: float
    """For which all servers may be too busy."""


class Dispatch:
    """The jobs of one call.

    A job waits, or is out with one server (two, when it takes long and another is idle). It comes
    back when a server fails; the first answer counts, and the other request is cancelled.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        jobs: Sequence[Job],
        encode: Encode,
        missing: Callable[[str], Scores],
        patience: Patience,
    ) -> None:
        self.replicas, self.jobs, self.patience = replicas, jobs, patience
        self._encode, self._missing = encode, missing
        self._waiting = deque(jobs)
        self._changed = asyncio.Event()
        self._alive = self._progress = time.monotonic()

    async def run(self) -> None:
        """Until every job has its scores."""
        workers = [
            asyncio.create_task(self._work(replica))
            for replica in self.replicas
            for _ in range(self.patience.connections)
        ]
        try:
            while not all(job.done for job in self.jobs):
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({changed, *workers}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for worker in workers:
                    if worker.done():
                        worker.result()
        finally:
            await _cancelled([*workers, *self._requests()])

    async def _work(self, replica: Replica) -> None:
        while True:
            try:
                await replica.join()
            except (DownError, FlowOPDError):
                self._check_silence()
                continue
            self._alive = time.monotonic()
            job = await self._next(replica)
            try:
                await self._send(job, replica)
            except BusyError as busy:
                self._come_back(job)
                self._check_business()
                await asyncio.sleep(busy.seconds)
            except DownError as error:
                replica.fail(str(error))
                self._failed(job, f"{replica.url}: {error}")

    async def _next(self, replica: Replica) -> Job:
        """A job that waits, or one that another server does not come to an end with."""
        while True:
            if self._waiting:
                return self._waiting.popleft()
            slow = min(self._alone_elsewhere(replica), key=lambda job: job.since, default=None)
            wait = None
            if slow is not None:
                wait = slow.since + self.patience.hedge_seconds - time.monotonic()
                if wait <= 0:
                    return slow
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _alone_elsewhere(self, replica: Replica) -> Iterator[Job]:
        for job in self.jobs:
            if not job.done and len(job.running) == 1 and replica not in job.running.values():
                yield job

    async def _send(self, job: Job, replica: Replica) -> None:
        """Have the job scored; quietly nothing when another server was quicker."""
        request = asyncio.create_task(self._request(job, replica))
        job.running[request] = replica
        job.since = time.monotonic()
        self._notify()
        try:
            await asyncio.wait({request})
            if request.cancelled():
                return
            scores = request.result()
        finally:
            rivals = list(job.running)
            job.running.pop(request)
        if job.done:
            return
        job.scores = scores
        self._progress = self._alive = time.monotonic()
        for other in rivals[: rivals.index(request)]:
            job.running[other].fail("it was overtaken by another server")
        for other in job.running:
            other.cancel()
        self._notify()

    async def _request(self, job: Job, replica: Replica) -> list[Scores]:
        body = await asyncio.to_thread(self._encode, job.pictures)
        return await replica.score(body, len(job.pictures))

    def _failed(self, job: Job, trouble: str) -> None:
        """Another try, unless the job fails wherever it goes."""
        job.failures += 1
        if job.failures < self.patience.attempts or job.running:
            self._come_back(job)
            return
        if not job.done:
            reason = f"no server could score it, the last of {job.failures} being {trouble}"
            job.scores = [self._missing(reason) for _ in job.pictures]
            self._notify()

    def _come_back(self, job: Job) -> None:
        if not job.done and not job.running and job not in self._waiting:
            self._waiting.appendleft(job)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _check_silence(self) -> None:
        seconds = time.monotonic() - self._alive
        if seconds > self.patience.silent_seconds and not any(one.up for one in self.replicas):
            raise FlowOPDError(no_answer(self.replicas))

    def _check_business(self) -> None:
        seconds = time.monotonic() - self._progress
        if seconds > self.patience.busy_seconds:
            places = ", ".join(replica.url for replica in self.replicas)
            raise FlowOPDError(
                f"The servers {places} have been too busy for {seconds:.0f} seconds; start more, "
                "or ask them less."
            )

    def _requests(self) -> Iterator[asyncio.Task[Any]]:
        for job in self.jobs:
            yield from job.running


def no_answer(replicas: Sequence[Replica]) -> str:
    """The sentence on servers of which none answers."""
    troubles = "; ".join(f"{replica.url} ({replica.trouble})" for replica in replicas)
    return f"None of the servers answers: {troubles}. Start one, or mend urls."


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
