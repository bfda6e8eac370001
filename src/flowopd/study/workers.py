"""Doing stages in processes of their own, several at a time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from flowopd.errors import FlowOPDError
from flowopd.locks import LOCKS, locked
from flowopd.study.plan import Plan, Stage
from flowopd.study.records import OUTPUT, State, claim, look, verify
from flowopd.study.runner import Failures, blocked, say, say_aside, took
from flowopd.training.interrupt import Interrupted

POLL = 0.1  # seconds
Command = Callable[[Stage], Sequence[str]]
"""The command line that does one stage."""


@dataclass
class Worker:
    """A stage that is being done in a slot."""

    stage: Stage
    slot: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    signals: int = 0
    """How many it was sent."""


class Workers:
    """Runs ready stages in up to ``jobs`` processes until none is left."""

    def __init__(self, plan: Plan, jobs: int, command: Command) -> None:
        self.plan, self.jobs, self.command = plan, jobs, command
        self.failures: Failures = {}
        self._running: list[Worker] = []
        self._signals = 0

    def do_all(self, todo: Sequence[Stage]) -> Failures:
        """Every stage as soon as what it needs is done; a failure stops those that stand on it."""
        left = list(todo)
        with self._noting_signals():
            try:
                while left or self._running:
                    left = self._start_ready(left)
                    self._pass_signals_on()
                    self._collect()
                    time.sleep(POLL if self._running else 0)
                    if self._signals and not self._running:
                        raise Interrupted(
                            "interrupted; what was written until now is kept, and the same "
                            "command goes on from there."
                        )
            finally:
                for worker in self._running:
                    worker.process.kill()
                    worker.process.wait()
        return self.failures

    def _start_ready(self, left: list[Stage]) -> list[Stage]:
        """Starts what can be started; the rest."""
        waiting = []
        undone = {stage.name for stage in left} | {w.stage.name for w in self._running}
        for stage in left:
            reason = blocked(stage, self.failures)
            if reason:
                self._fail(stage, reason)
            elif self._signals:
                continue
            elif len(self._running) < self.jobs and not undone & set(stage.needs):
                self._start(stage)
            else:
                waiting.append(stage)
        return waiting

    def _start(self, stage: Stage) -> None:
        if look(stage).state is State.DONE:
            return
        try:
            for need in stage.needs:
                verify(self.plan.stages[need])
            with locked(self.plan.folder / LOCKS / stage.name, f"The stage {stage.name!r}"):
                say_aside(stage, claim(stage, self.plan))
        except FlowOPDError as error:
            self._fail(stage, str(error))
            return
        taken = {worker.slot for worker in self._running}
        slot = next(number for number in range(self.jobs) if number not in taken)
        path = stage.folder / OUTPUT
        log = path.open("ab")
        process = subprocess.Popen(
            self.command(stage),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(slot, self.jobs),
            start_new_session=True,  # a Ctrl-C reaches this process, which passes it on once
        )
        self._running.append(Worker(stage, slot, process, log))
        say(f"{stage.name}: started (its output: {path})")

    def _collect(self) -> None:
        for worker in list(self._running):
            status = worker.process.poll()
            if status is None:
                continue
            worker.log.close()
            self._running.remove(worker)
            if look(worker.stage).state is State.DONE:
                say(f"{worker.stage.name}: {took(worker.stage)}")
            elif self._signals:
                say(f"{worker.stage.name}: interrupted")
            else:
                self._fail(worker.stage, _reason(worker.stage.folder / OUTPUT, status))

    def _fail(self, stage: Stage, reason: str) -> None:
        self.failures[stage.name] = reason
        say(f"{stage.name}: failed: {reason}")

    def _pass_signals_on(self) -> None:
        """The first signal lets the workers finish and save; a second one ends them."""
        for worker in self._running:
            if worker.signals < self._signals:
                worker.signals = self._signals
                worker.process.terminate() if self._signals == 1 else worker.process.kill()

    @contextlib.contextmanager
    def _noting_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals += 1

        before: dict[int, Any] = {
            number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def worker_command(study: Path, folder: Path) -> Command:
    """This program, in the mode that does one stage."""
    start = (sys.executable, "-m", "flowopd", "run", str(study), "--out", str(folder))
    return lambda stage: (*start, "--worker", stage.name, "--parent", str(os.getpid()))


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Each slot has its part of the cores, and one device of several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // jobs))}
    devices = _devices()
    if len(devices) > 1:
        own["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return {**os.environ, **own}


def _devices() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _reason(log: Path, status: int) -> str:
    """The last line that a failed worker wrote."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].removeprefix("flowopd: ") if lines else f"exit status {status}"
    return f"{last} (see {log})"
