"""Jobs over several servers: every picture gets one result, whichever server dies meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores, UnavailableError
from flowopd.rewards.service.jobs import Job, Jobs, Request
from flowopd.rewards.service.replica import BusyError, DownError, Replica

Encode = Callable[[Sequence[int]], bytes]
TOO_SMALL = "it takes no pictures as large, or not as many together"


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
    call_seconds: float
    """For which all of it may take."""


class StoppedError(Exception):
    """Why no more is asked."""


class Dispatch:
    """The jobs of one call, given to servers until all are done or there is no hope.

    The first answer counts, and the other request for the same job is cancelled. ``room``: how many
    pictures of the call a server takes in a request.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        jobs: Sequence[Job],
        encode: Encode,
        missing: Callable[[str], Scores],
        patience: Patience,
        room: Callable[[Replica], int],
    ) -> None:
        self.replicas, self.patience = replicas, patience
        self.jobs = Jobs(
            jobs,
            missing,
            attempts=patience.attempts,
            hedge_seconds=patience.hedge_seconds,
        )
        self._encode, self._room = encode, room
        self._largest = max(len(unit) for job in jobs for unit in job.units)
        self._requests: set[Request] = set()
        self._too_small: set[Replica] = set()
        self._answered = False
        self._alive = self._progress = time.monotonic()

    async def run(self) -> dict[int, Scores]:
        """The scores of all pictures, or why some have none; an error if no server gave any."""
        workers = {
            asyncio.create_task(self._work(replica))
            for replica in self.replicas
            for _ in range(self.patience.connections)
        }
        try:
            async with asyncio.timeout(self.patience.call_seconds):
                await self._all_done(workers)
        except TimeoutError:
            self.jobs.stop(self._too_late())
        except StoppedError as error:
            self.jobs.stop(str(error))
        finally:
            await _cancelled([*workers, *self._requests])
        if not self._answered:
            raise UnavailableError(self.jobs.problem)
        return self.jobs.found

    async def _all_done(self, workers: set[asyncio.Task[None]]) -> None:
        at_work = set(workers)
        while not self.jobs.done:
            changed = asyncio.create_task(self.jobs.changed.wait())
            try:
                done, _ = await asyncio.wait(
                    {changed, *at_work}, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                changed.cancel()
            for worker in done & at_work:
                worker.result()
            at_work -= done

    async def _work(self, replica: Replica) -> None:
        while True:
            try:
                await replica.join()
            except (DownError, FlowOPDError):
                self._check_hope()
                continue
            self._alive = time.monotonic()
            room = self._room(replica)
            if room < self._largest:
                self._too_small.add(replica)
                self._check_hope()
                return
            job = await self._next(replica, room)
            if job is not None:
                await self._ask(replica, job)

    async def _next(self, replica: Replica, room: int) -> Job | None:
        """None when the server has failed meanwhile."""
        while replica.up:
            job, wait = self.jobs.next(replica, room)
            if job is not None:
                return job
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.jobs.changed.wait()
        return None

    async def _ask(self, replica: Replica, job: Job) -> None:
        try:
            await self._send(job, replica)
        except BusyError as busy:
            self.jobs.come_back(job)
            self._check_business()
            await asyncio.sleep(busy.seconds)
        except (DownError, UnavailableError) as error:
            replica.fail(str(error))
            self.jobs.failed(job, f"{replica.url}: {error}")
        except FlowOPDError as error:
            self.jobs.refused(job, str(error))

    async def _send(self, job: Job, replica: Replica) -> None:
        """Have the job scored; quietly nothing when another server was quicker."""
        request = asyncio.create_task(self._request(job, replica))
        self._requests.add(request)
        self.jobs.begin(job, request, replica)
        try:
            await asyncio.wait({request})
            if request.cancelled():
                return
            scores = request.result()
        finally:
            rivals = list(job.running)
            self.jobs.end(job, request)
            self._requests.discard(request)
        if not self.jobs.is_open(job):
            return
        self._answered = True
        self._progress = self._alive = time.monotonic()
        for other in rivals[: rivals.index(request)]:
            job.running[other].fail("it was overtaken by another server")
        for other in job.running:
            other.cancel()
        self.jobs.settle(job, scores)

    async def _request(self, job: Job, replica: Replica) -> list[Scores]:
        pictures = job.pictures
        body = await asyncio.to_thread(self._encode, pictures)
        return await replica.score(body, len(pictures))

    def _check_hope(self) -> None:
        """Stop when no server answers for too long, or none is left that could."""
        able = [one for one in self.replicas if one not in self._too_small]
        seconds = time.monotonic() - self._alive
        if any(one.up for one in able):
            return
        if seconds > self.patience.silent_seconds or all(one.wrong for one in able):
            raise StoppedError(no_answer(self.replicas, dict.fromkeys(self._too_small, TOO_SMALL)))

    def _check_business(self) -> None:
        seconds = time.monotonic() - self._progress
        if seconds > self.patience.busy_seconds:
            raise StoppedError(
                f"The servers {self._places()} have been too busy for {seconds:.0f} seconds; start "
                "more, or ask them less."
            )

    def _too_late(self) -> str:
        return (
            f"the servers {self._places()} had not scored it when the call's time (call_seconds) "
            "was over"
        )

    def _places(self) -> str:
        return ", ".join(replica.url for replica in self.replicas)


def no_answer(replicas: Sequence[Replica], troubles: dict[Replica, str] | None = None) -> str:
    """The sentence on servers of which none answers."""
    why = {replica: replica.trouble for replica in replicas} | (troubles or {})
    said = "; ".join(f"{replica.url} ({why[replica].rstrip('.')})" for replica in replicas)
    return f"None of the servers answers as it should: {said}. Start one, or mend urls."


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
