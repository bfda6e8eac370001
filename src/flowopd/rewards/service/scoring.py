"""The scorer behind a server: read, wait for one's turn, score, and write down what came out."""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, Scorer, Scores, applies, check_record
from flowopd.rewards.service.counters import Counters
from flowopd.rewards.service.gate import COME_BACK, GoneError, RefusedError
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.thread import OwnThread
from flowopd.rewards.service.wire import about_reply, finding_reply, read_request, reply_body
from flowopd.rewards.work.calls import Failed, failures, in_words
from flowopd.rewards.work.examination import Examination
from flowopd.rewards.work.runners import EXAMINE, LOAD, SCORE, STARTING, GivenUp, Runner
from flowopd.tasks.prompts import PromptRecord

Pictures = Sequence[NDArray[np.uint8]]


class Place:
    """One of the threads or processes in which the scorer works, for one request at a time."""

    def __init__(self, runner: Runner, number: int) -> None:
        self._runner, self._thread = runner, OwnThread(f"place {number}")
        self.trouble = ""

    async def do(self, *order: Any, timeout: float | None) -> Any:
        """What the scorer gives; GivenUp if it does not come back, or cannot be loaded any more.

        A FlowOPDError if it came back with what cannot be taken.
        """
        if self.trouble:
            await self.load()
        try:
            return await self.tell(*order, timeout=timeout)
        except FlowOPDError:
            await self.load()
            raise

    async def load(self) -> None:
        """It is free of its trouble when it is loaded; in a process, that may be a new one."""
        try:
            await self.tell(LOAD, timeout=STARTING)
        except FlowOPDError as error:
            self.trouble = str(error).rstrip(".")
            raise GivenUp(self.trouble) from None

    async def tell(self, *order: Any, timeout: float | None = None) -> Any:
        try:
            result = await self._thread.do(self._runner.run, order, timeout)
        except GivenUp as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return result

    def close(self) -> None:
        self._runner.close()
        self._thread.close()


class Service:
    """One scorer, in as many places as it works in at the same time."""

    def __init__(
        self,
        scorer: Scorer,
        runners: Sequence[Runner],
        limits: Limits,
        identity: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.scorer, self.limits, self.counters = scorer, limits, Counters()
        self.instance = secrets.token_hex(8)
        self.about = about_reply(scorer, identity or {}, limits, self.instance)
        self._timeout, self._reader = timeout, OwnThread("reader")
        self._places = [Place(runner, number) for number, runner in enumerate(runners)]
        self._free: asyncio.LifoQueue[Place] = asyncio.LifoQueue()
        for place in self._places:
            self._free.put_nowait(place)
        self._looking: asyncio.Task[None] | None = None
        self._room = asyncio.Semaphore(len(runners) + 1)  # unpacked: those scored, and the next

    async def load(self) -> None:
        for place in self._places:
            try:
                await place.tell(LOAD)
            except GivenUp as error:
                raise FlowOPDError(
                    f"The scorer {self.scorer.name!r} cannot be loaded: {error}."
                ) from None

    async def score(self, body: bytes, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """The reply to a ScoreRequest."""
        async with self._room:
            try:
                pictures, records = await self._reader.do(self._read, body)
            except FlowOPDError as error:
                raise RefusedError(422, str(error)) from None
            place = await self._free.get()
            try:
                if await gone():
                    raise GoneError
                scores = await self._scored(place, pictures, records)
            finally:
                self._free.put_nowait(place)
        return reply_body(scores, self.instance)

    async def check(self) -> bytes:
        """What the scorer's own check finds."""
        place = await self._free.get()
        try:
            found = await place.do(EXAMINE, False, timeout=self._timeout)
        except GivenUp as error:
            raise _unhealthy(str(error)) from None
        except FlowOPDError as error:
            found = Examination(problem=str(error))
        finally:
            self._free.put_nowait(place)
        findings = list(found.findings)
        if found.problem:
            findings.append(Finding(found.problem, None, "a check without errors", False))
        return finding_reply(findings).model_dump_json().encode()

    def refuse_if_unhealthy(self) -> None:
        """Raise if the scorer does not come back anywhere, and look whether it has meanwhile."""
        troubles = [place.trouble for place in self._places]
        if all(troubles):
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_again())
            raise _unhealthy(troubles[0])

    def close(self) -> None:
        for place in self._places:
            place.close()
        self._reader.close()

    async def _look_again(self) -> None:
        place = await self._free.get()
        try:
            await place.load()
        except GivenUp:
            return
        finally:
            self._free.put_nowait(place)

    def _read(self, body: bytes) -> tuple[Pictures, list[PromptRecord]]:
        pictures, records = read_request(body, self.limits)
        for record in records:
            if not applies(self.scorer, record):
                raise FlowOPDError(
                    f"The scorer {self.scorer.name!r} does not read prompts of the task "
                    f"{record.task!r}."
                )
            try:
                check_record(self.scorer.name, self.scorer, record)
            except FlowOPDError:
                raise
            except Exception as error:  # a scorer is anybody's code, and the record anybody's data
                raise FlowOPDError(
                    f"The scorer {self.scorer.name!r} cannot read the prompt {record.prompt!r}: "
                    f"{in_words(error)}."
                ) from None
        if self.scorer.grouped and len({picture.shape for picture in pictures}) > 1:
            raise FlowOPDError(
                f"The scorer {self.scorer.name!r} compares pictures, and those of the request are "
                "not of one size."
            )
        return pictures, records

    async def _scored(
        self, place: Place, pictures: Pictures, records: Sequence[PromptRecord]
    ) -> list[Scores]:
        """In calls of one size of pictures each."""
        started, found = time.monotonic(), dict[int, Scores]()
        try:
            for shape in dict.fromkeys(picture.shape for picture in pictures):
                same = [i for i, picture in enumerate(pictures) if picture.shape == shape]
                images, own = np.stack([pictures[i] for i in same]), [records[i] for i in same]
                scores = await self._called(place, images, own)
                found.update(zip(same, scores, strict=True))
        except GivenUp as error:
            raise _unhealthy(str(error)) from None
        finally:
            self.counters.add("score_seconds_sum", time.monotonic() - started)
            self.counters.add("score_seconds_count")
        scores = [self._numbered(found[i]) for i in range(len(pictures))]
        missing = sum(value is None for score in scores for value in score.values.values())
        self.counters.add("images_total", len(scores))
        self.counters.add("missing_total", missing)
        self.counters.add("failures_total", sum(isinstance(one, Failed) for one in scores))
        return scores

    async def _called(
        self, place: Place, images: NDArray[np.uint8], records: Sequence[PromptRecord]
    ) -> list[Scores]:
        try:
            return list(await place.do(SCORE, images, records, timeout=self._timeout))
        except FlowOPDError as error:
            return failures(self.scorer, len(records), in_words(error))

    def _numbered(self, score: Any) -> Scores:
        """With plain floats; what is no finite number is missing."""
        if not isinstance(score, Scores):
            words = f"it gave {type(score).__name__}, and no Scores, for a picture"
            return failures(self.scorer, 1, words)[0]
        values, reasons = dict[str, float | None](), dict(score.reasons)
        for name, value in score.values.items():
            values[name] = None
            if value is not None:
                try:
                    values[name] = _number(value)
                except ValueError as error:
                    reasons[name] = f"the scorer gave {error}, which is no number"
        return replace(score, values=values, reasons=reasons)


def _number(value: Any) -> float:
    """A finite float; a ValueError with what it is if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        text = repr(value)
        raise ValueError(text if len(text) <= 100 else text[:97] + "...") from None
    if not math.isfinite(number):
        raise ValueError(str(number))
    return number


def _unhealthy(trouble: str) -> RefusedError:
    return RefusedError(
        503, f"The scorer does not come back: {trouble}.", retry_after=str(COME_BACK)
    )
