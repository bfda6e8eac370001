"""All scorers of a run at work, beside the one that draws and in the order in which it asks."""

import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scorer, Scores
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work.calls import Images, failures, in_words
from flowopd.rewards.work.examination import Examination
from flowopd.rewards.work.runners import (
    EXAMINE,
    LOAD,
    SCORE,
    STARTING,
    GivenUp,
    Order,
    Runner,
    runners_of,
)
from flowopd.tasks.prompts import PromptRecord

WAITING = 2
"""Calls that may wait for each thread or process; who asks for more waits, too."""


class Jury:
    """Threads and processes for scorers, from when each is first needed until `close`."""

    def __init__(self, scorers: Iterable[tuple[ScorerSpec, Scorer]]) -> None:
        self._desks = {id(scorer): Desk(spec, scorer) for spec, scorer in scorers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def load(self) -> None:
        """Every scorer with its weights, wherever it works."""
        for desk in self._desks.values():
            desk.everywhere((LOAD,))

    def examine(self, *, speed: bool = False) -> list[tuple[str, Examination]]:
        """What is found of each, beside its name, which several may share."""
        return [(desk.name, desk.examined(speed)) for desk in self._desks.values()]

    def call(self, scorer: Scorer, images: Images, records: Sequence[PromptRecord]) -> "BegunCall":
        """Begin to score; waits while too many calls of the scorer are under way."""
        return self._desks[id(scorer)].call(images, records)

    def close(self) -> None:
        """What was begun is not waited for."""
        for desk in self._desks.values():
            desk.close()


class Desk:
    """One scorer: calls wait in a row for the next of its runners that is free."""

    def __init__(self, spec: ScorerSpec, scorer: Scorer) -> None:
        self.name = scorer.name
        self._scorer, self._timeout = scorer, spec.timeout
        self._runners = runners_of(spec, scorer)
        self._row: queue.Queue[tuple[Order, Future[Any]] | None] = queue.Queue(
            WAITING * len(self._runners)
        )
        self._threads: list[threading.Thread] = []

    def call(self, images: Images, records: Sequence[PromptRecord]) -> "BegunCall":
        if not self._threads:
            self._begin()
        parts = []
        for first, end in self._cut(len(records)):
            future: Future[Any] = Future()
            self._row.put(((SCORE, images[first:end], records[first:end]), future))
            parts.append((future, end - first))
        return BegunCall(self._scorer, parts)

    def everywhere(self, order: Order) -> None:
        for runner in self._runners:
            try:
                runner.run(order)
            except GivenUp as error:
                raise FlowOPDError(f"The scorer {self.name!r} cannot be loaded: {error}.") from None

    def examined(self, speed: bool) -> Examination:
        """By the first of its runners. Loading may take any time, as it may fetch a model; the rest
        has as long as a process has to start, since it makes several calls."""
        try:
            grown = self._runners[0].run((LOAD,))
            found = self._runners[0].run((EXAMINE, speed), max(STARTING, self._timeout))
            return replace(found, host_bytes=grown + found.host_bytes)
        except GivenUp as error:
            return Examination(problem=f"it cannot be examined: {error}")
        except FlowOPDError as error:
            return Examination(problem=str(error))

    def close(self) -> None:
        while True:
            try:
                item = self._row.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[1].cancel()
        for _ in self._threads:
            self._row.put(None)
        for runner in self._runners:
            runner.close()

    def _begin(self) -> None:
        for runner in self._runners:
            name = f"calls of {self.name}"
            thread = threading.Thread(target=self._work, args=(runner,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self, runner: Runner) -> None:
        while (item := self._row.get()) is not None:
            order, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(runner.run(order, self._timeout))
            except BaseException as error:  # for the one who waits
                future.set_exception(error)

    def _cut(self, count: int) -> list[tuple[int, int]]:
        """A part of a call for each of the runners; the pictures of a prompt stay together."""
        parts = 1 if self._scorer.grouped else max(1, min(len(self._runners), count))
        edges = [count * number // parts for number in range(parts + 1)]
        return list(pairwise(edges))


@dataclass(frozen=True)
class BegunCall:
    """A call in its parts, each with the number of its images."""

    scorer: Scorer
    parts: Sequence[tuple["Future[Any]", int]]

    def result(self) -> list[Scores]:
        """In the order of the images; what the scorer did not give has failed, with the reason."""
        found: list[Scores] = []
        for future, count in self.parts:
            try:
                found += future.result()
            except Exception as error:
                found += failures(self.scorer, count, _reason(error))
        return found


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, GivenUp | FlowOPDError) else in_words(error)
