"""The servers that a remote scorer asks: found, found again, and given the pictures of a call."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, Scores, UnavailableError
from flowopd.rewards.service.background import Background
from flowopd.rewards.service.cutting import Weight, together
from flowopd.rewards.service.dispatch import Dispatch, Patience, no_answer
from flowopd.rewards.service.jobs import Job
from flowopd.rewards.service.replica import BusyError, DownError, Replica
from flowopd.rewards.service.wire import AboutReply, request_body
from flowopd.rewards.work.calls import Failed, Unit, units
from flowopd.tasks.prompts import PromptRecord

if TYPE_CHECKING:
    from flowopd.rewards.service.remote import ServedScorer
    from flowopd.rewards.service.remote_settings import ServerSettings

Agrees = Callable[[str, AboutReply], None]


class Pool:
    """The servers of a scorer. All that touches them happens in one background loop."""

    def __init__(self, scorer: "ServedScorer", settings: "ServerSettings", agrees: Agrees) -> None:
        self._name, self._grouped = scorer.name, scorer.grouped
        self._metrics = [metric.name for metric in scorer.metrics]
        self._settings = settings
        self._background = Background(f"{scorer.name} remote")
        self._replicas: list[Replica] = []
        try:
            self._background.run(self._open(agrees))
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._background.alive

    def score(
        self, images: NDArray[np.uint8], records: Sequence[PromptRecord], end: float
    ) -> list[Scores]:
        """All scores, until `end` on the monotonic clock; what is not there by then is missing."""
        if not len(images):
            return []
        settings = self._settings
        weight = Weight.of(images.shape[1], images.shape[2], settings.format, records)

        def encode(part: Sequence[int]) -> bytes:
            pictures, own = [images[i] for i in part], [records[i] for i in part]
            return request_body(pictures, own, settings.format, settings.quality)

        def room(replica: Replica) -> int:
            return 0 if replica.about is None else weight.room(replica.about.limits)

        jobs = self._jobs(units(records, self._grouped), room, images.shape)
        patience = Patience(
            connections=settings.connections,
            attempts=settings.attempts,
            hedge_seconds=settings.hedge_after,
            silent_seconds=settings.patience,
            busy_seconds=settings.request_seconds,
            call_seconds=end - time.monotonic(),
        )
        dispatch = Dispatch(self._replicas, jobs, encode, self._missing, patience, room)
        try:
            found = self._background.run(dispatch.run())
        except FlowOPDError as error:
            raise type(error)(f"The scorer {self._name!r}: {error}") from None
        return [found[i] for i in range(len(images))]

    def check(self) -> list[Finding]:
        """What every server finds that answers; what keeps them from it, if none does."""
        return self._background.run(self._checked())

    def close(self) -> None:
        if self._background.alive:
            with contextlib.suppress(UnavailableError):  # another thread was quicker
                self._background.run(self._closed())
            self._background.close()

    async def _open(self, agrees: Agrees) -> None:
        import httpx

        settings, token = self._settings, self._settings.token()
        self._client = httpx.AsyncClient(
            timeout=None,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=15.0),
            headers={"Authorization": f"Bearer {token}"} if token else None,
            trust_env=False,
            verify=settings.certificates(),
        )
        self._replicas = [
            Replica(url, self._client, agrees, settings.request_seconds) for url in settings.urls
        ]
        await self._joined()
        for replica in self._replicas:
            if not replica.up:
                self._say(
                    f"warning: {self._name}: the server {replica.url} does not answer "
                    f"({replica.trouble}); the others go on without it."
                )

    async def _joined(self) -> None:
        """Until one of the servers answers, and the others had one chance."""
        end, told = time.monotonic() + self._settings.patience, False
        while True:
            results = await asyncio.gather(
                *(replica.join() for replica in self._replicas), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, DownError):
                    raise result
            if any(replica.up for replica in self._replicas):
                return
            if time.monotonic() > end:
                raise UnavailableError(f"The scorer {self._name!r}: {no_answer(self._replicas)}")
            if not told:
                seconds = self._settings.patience
                self._say(
                    f"{self._name}: waiting up to {seconds:g} seconds for a server to answer."
                )
            told = True

    async def _checked(self) -> list[Finding]:
        results = await asyncio.gather(
            *(self._checked_by(replica) for replica in self._replicas), return_exceptions=True
        )
        found, silent = list[list[Finding]](), list[Finding]()
        for replica, result in zip(self._replicas, results, strict=True):
            if isinstance(result, DownError | BusyError):
                silent.append(Finding(f"{replica.url}: {result}", None, "an answer", False))
            elif isinstance(result, BaseException):
                raise result
            else:
                found.append(result)
        if not found:
            return silent
        for one in silent:
            self._say(f"warning: {self._name}: {one.what}; the check goes on without it.")
        return [one for findings in found for one in findings]

    async def _checked_by(self, replica: Replica) -> list[Finding]:
        """Its own check, as soon as it has time for that."""
        end = time.monotonic() + self._settings.request_seconds
        await replica.join()
        while True:
            try:
                findings = await replica.check()
            except BusyError as busy:
                if time.monotonic() + busy.seconds > end:
                    raise
                await asyncio.sleep(busy.seconds)
            except DownError as error:
                replica.fail(str(error))
                raise
            else:
                return [
                    Finding(f"{replica.url}: {one.what}", one.value, one.expected, one.good)
                    for one in findings
                ]

    async def _closed(self) -> None:
        if self._replicas:
            await self._client.aclose()

    def _missing(self, reason: str) -> Scores:
        return Failed(dict.fromkeys(self._metrics), dict.fromkeys(self._metrics, reason))

    def _jobs(
        self, parts: Sequence[Unit], room: Callable[[Replica], int], shape: tuple[int, ...]
    ) -> list[Job]:
        """What goes together: as much as asked for and as all servers take, but for small ones."""
        rooms = [room(replica) for replica in self._replicas if replica.about is not None]
        largest = max(map(len, parts))
        if max(rooms) < 1:
            raise FlowOPDError(
                f"The servers of {self._name!r} do not take pictures of {shape[2]} x {shape[1]} "
                "pixels; start them with higher limits."
            )
        if max(rooms) < largest:
            raise FlowOPDError(
                f"The scorer {self._name!r} compares the pictures of a prompt, of which there are "
                f"{largest}; its servers do not take so many at once."
            )
        most = min(self._settings.batch_size, *(one for one in rooms if one >= largest))
        if self._grouped:
            return [Job([unit]) for unit in parts]
        return [Job(some) for some in together(parts, most)]

    def _say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr)
