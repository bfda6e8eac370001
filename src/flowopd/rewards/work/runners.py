"""Where a scorer works: in a thread, or in a process of its own. One order at a time."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Closes, Scorer
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work.calls import attempt, in_words
from flowopd.rewards.work.examination import examine, load

Order = tuple[Any, ...]
"""What is to be done, and with what."""
LOAD, EXAMINE, SCORE = "load", "examine", "score"
MOST_PROCESSES = 4
STARTING = 600.0
"""Seconds that a process may take to load its scorer, when it is started again."""
LAST_WORDS = 2.0
"""Seconds that a process has to end by itself."""
WATCH = 1.0


class GivenUp(Exception):  # noqa: N818 - it is the scorer's error, in words
    """A scorer that did not answer in time, or whose process ended."""


class Runner(Protocol):
    def run(self, order: Order, timeout: float | None = None) -> Any:
        """Do it and wait; GivenUp if there is no answer."""
        ...

    def close(self) -> None: ...


def close(scorer: Scorer) -> None:
    """Let it give back what it holds; it may be used again."""
    if isinstance(scorer, Closes):
        scorer.close()


def obey(scorer: Scorer, order: Order) -> Any:
    what, *arguments = order
    if what == LOAD:
        return load(scorer)
    if what == EXAMINE:
        return examine(scorer, speed=arguments[0])
    return attempt(scorer, *arguments)


class ThreadRunner:
    """A thread, which cannot be ended: one that hangs is left alone until it comes back."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._hangs = self._busy = self._closed = self._abandoned = False

    def run(self, order: Order, timeout: float | None = None) -> Any:
        if self._hangs:
            self._look_again()
        self._hand_over(order)
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            self._hangs = True
            raise GivenUp(f"it did not answer within {timeout:g} s") from None
        self._busy = False
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """One that is at work ends when it has come back, and is not waited for. It does not close
        its scorer then, which others may use by that time."""
        with self._lock:
            thread, self._closed, self._abandoned = self._thread, True, self._busy
            if thread is None:
                return
            self._thread = None
            self._orders.put(None)
        if not self._abandoned:
            thread.join(LAST_WORDS)

    def _hand_over(self, order: Order) -> None:
        with self._lock:
            if self._closed:
                raise GivenUp("it has been closed")
            if self._thread is None:
                name = self._scorer.name
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._busy = True
            self._orders.put(order)

    def _look_again(self) -> None:
        """Whether the call that was given up has come to its end by now."""
        try:
            self._answers.get_nowait()
        except queue.Empty:
            raise GivenUp("it is still at work on a call that was given up") from None
        self._hangs = self._busy = False

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                answer = obey(self._scorer, order)
            except Exception as error:
                answer = error
            except BaseException as error:  # a scorer that wants to end the process
                answer = GivenUp(in_words(error))
            self._answers.put(answer)
        if not self._abandoned:
            with contextlib.suppress(Exception):
                close(self._scorer)


def runners_of(spec: ScorerSpec, scorer: Scorer) -> list[Runner]:
    """Where the scorer works: a thread here, or as many processes as it is to have."""
    if spec.processes is None and getattr(scorer, "workers", "threads") != "processes":
        return [ThreadRunner(scorer)]
    count = spec.processes or usual_processes()
    return [ProcessRunner(spec.name, spec.settings) for _ in range(count)]


def usual_processes() -> int:
    """Half of this process's share of the cores, but not many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_PROCESSES, (cores or 1) // (2 * beside)))


class ProcessRunner:
    """A process, started when it is first needed; one that hangs is killed, and started again."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name, self._settings = name, dict(settings)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._busy = self._closed = False

    def run(self, order: Order, timeout: float | None = None) -> Any:
        if self._closed:
            raise GivenUp("its processes have been ended")
        if self._process is None or not self._process.is_alive():
            self._start()
            if order[0] != LOAD:
                self._ask((LOAD,), max(STARTING, timeout or 0))
        return self._ask(order, timeout)

    def close(self) -> None:
        """From any thread. One that is at work is killed, and whoever waits for it is told."""
        self._closed = True
        atexit.unregister(self._kill)
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            return
        if self._busy:
            process.kill()
            process.join()
            return
        with contextlib.suppress(OSError):
            pipe.send(None)
        process.join(LAST_WORDS)
        self._kill()

    def _start(self) -> None:
        self._kill()
        atexit.unregister(self._kill)
        atexit.register(self._kill)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve,
            args=(theirs, self._name, self._settings, os.getpid()),
            name=f"scorer {self._name}",
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def _ask(self, order: Order, timeout: float | None) -> Any:
        process, pipe = self._process, self._pipe
        assert pipe is not None
        self._busy = True
        try:
            pipe.send(order)
            if not pipe.poll(timeout):
                self._kill()
                raise GivenUp(f"it did not answer within {timeout:g} s; its process was ended")
            answer = pipe.recv()
        except (EOFError, OSError):
            process.join(LAST_WORDS)
            self._kill()
            raise GivenUp(f"its process ended ({_in_words(process.exitcode)})") from None
        finally:
            self._busy = False
        if isinstance(answer, FlowOPDError):
            raise answer
        return answer

    def _kill(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if process is not None:
            process.kill()
            process.join()
        if pipe is not None:
            pipe.close()


def serve(pipe: Connection, name: str, settings: Mapping[str, Any], parent: int) -> None:
    """A process of a scorer. It ends with the one that started it, which alone hears signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        scorer, problem = plugins.load_scorer({"name": name, **settings}), None
    except FlowOPDError as error:
        scorer, problem = None, error
    while True:
        try:
            order = pipe.recv()
            if order is None:
                return
            answer = problem or _answer(scorer, order)
            _send(pipe, answer)
        except (EOFError, OSError):
            return


def _answer(scorer: Scorer, order: Order) -> Any:
    try:
        return obey(scorer, order)
    except FlowOPDError as error:
        return FlowOPDError(str(error))


def _send(pipe: Connection, answer: Any) -> None:
    try:
        pipe.send(answer)
    except (AttributeError, TypeError, ValueError, pickle.PicklingError) as error:
        pipe.send(FlowOPDError(f"what it found cannot be sent: {in_words(error)}"))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def _in_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
