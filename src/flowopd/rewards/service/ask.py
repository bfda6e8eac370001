"""The asking itself: servers that are found again, and a call cut into requests for them."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, Scores
from flowopd.rewards.service.background import Background
from flowopd.rewards.service.dispatch import Dispatch, Job, Patience, no_answer
from flowopd.rewards.service.images import most_bytes
from flowopd.rewards.service.replica import BusyError, DownError, Replica
from flowopd.rewards.service.wire import AboutReply, CheckReply, request_body, sentences
from flowopd.tasks.prompts import PromptRecord

if TYPE_CHECKING:
    from flowopd.rewards.service.asked import ServerSettings
    from flowopd.rewards.service.remote import ServedScorer

ESCAPED = 12
"""Bytes that a character of a record takes in JSON at most."""
Agrees = Callable[[str, AboutReply], None]


class Asking:
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

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        if not len(images):
            return []
        jobs = [Job(part) for part in self._parts(images, records)]
        settings = self._settings

        def encode(part: Sequence[int]) -> bytes:
            pictures, own = [images[i] for i in part], [records[i] for i in part]
            return request_body(pictures, own, settings.format, settings.quality)

        self._background.run(self._dispatched(jobs, encode))
        found = dict[int, Scores]()
        for job in jobs:
            found.update(zip(job.pictures, job.scores or (), strict=True))
        return [found[i] for i in range(len(images))]

    def check(self) -> list[Finding]:
        return self._background.run(self._checked())

    def close(self) -> None:
        if self._background.alive:
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
        )
        self._replicas = [
            Replica(url, self._client, agrees, settings.request_seconds) for url in settings.urls
        ]
        await self._joined()
        for replica in self._replicas:
            if not replica.up:
                print(
                    f"warning: {self._name}: the server {replica.url} does not answer "
                    f"({replica.trouble}); the others go on without it.",
                    file=sys.stderr,
                )

    async def _joined(self) -> None:
        """Until one of the servers answers, and the others had one chance."""
        clock = asyncio.get_running_loop().time
        end, told = clock() + self._settings.patience, False
        while True:
            results = await asyncio.gather(
                *(replica.join() for replica in self._replicas), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, DownError):
                    raise result
            if any(replica.up for replica in self._replicas):
                return
            if clock() > end:
                raise FlowOPDError(f"The scorer {self._name!r}: {no_answer(self._replicas)}")
            if not told:
                seconds = self._settings.patience
                print(
                    f"{self._name}: waiting up to {seconds:g} seconds for a server to answer.",
                    file=sys.stderr,
                )
            told = True

    async def _dispatched(self, jobs: list[Job], encode: Callable[[Sequence[int]], bytes]) -> None:
        settings = self._settings
        patience = Patience(
            connections=settings.connections,
            attempts=settings.attempts,
            hedge_seconds=settings.hedge_after,
            silent_seconds=settings.patience,
            busy_seconds=settings.request_seconds,
        )
        try:
            await Dispatch(self._replicas, jobs, encode, self._missing, patience).run()
        except FlowOPDError as error:
            raise FlowOPDError(f"The scorer {self._name!r}: {error}") from None

    async def _checked(self) -> list[Finding]:
        """What every server that answers finds."""
        findings = []
        for replica in self._replicas:
            try:
                await replica.join()
                found = CheckReply.model_validate_json(await replica.check()).findings
            except (DownError, BusyError) as error:
                findings.append(Finding(f"{replica.url}: {error}", None, "an answer", False))
            except ValidationError as error:
                raise FlowOPDError(f"{replica.url} answered nonsense: {sentences(error)}") from None
            else:
                findings += [
                    Finding(f"{replica.url}: {one.what}", one.value, one.expected, one.good)
                    for one in found
                ]
        return findings

    async def _closed(self) -> None:
        if self._replicas:
            await self._client.aclose()

    def _missing(self, reason: str) -> Scores:
        return Scores(dict.fromkeys(self._metrics), dict.fromkeys(self._metrics, reason))

    def _parts(
        self, images: NDArray[np.uint8], records: Sequence[PromptRecord]
    ) -> list[Sequence[int]]:
        """Which pictures go together: as many as the servers take, and whole groups."""
        longest = max(len(repr(record)) for record in records)
        room = self._room(images.shape[1], images.shape[2], longest)
        most = min(self._settings.batch_size, room)
        if not self._grouped:
            return [range(i, min(i + most, len(images))) for i in range(0, len(images), most)]
        groups: dict[str, list[int]] = {}
        for i, record in enumerate(records):
            groups.setdefault(repr(record), []).append(i)
        largest = max(len(group) for group in groups.values())
        if largest > room:
            raise FlowOPDError(
                f"The scorer {self._name!r} compares the pictures of a prompt, of which there are "
                f"{largest}; its servers do not take so many at once."
            )
        return list(groups.values())

    def _room(self, height: int, width: int, record: int) -> int:
        """How many pictures of this size, with records as long, all servers take in a request."""
        known = [one.about.limits for one in self._replicas if one.about is not None]
        size = most_bytes(height, width, self._settings.format) * 4 // 3 + ESCAPED * record + 100
        room = min(
            min(limits.batch, limits.pixels // (height * width), limits.body // size)
            for limits in known
        )
        if room < 1:
            raise FlowOPDError(
                f"The servers of {self._name!r} do not take pictures of {width} x {height} pixels; "
                "start them with higher limits."
            )
        return room
