"""Progress on standard error: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_INTERVAL = 30.0  # seconds between the lines that are not for a terminal

Advance = Callable[[int], None]


@contextmanager
def progress(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Gives a function that is told how many more units are done."""
    if not sys.stderr.isatty():
        yield _Lines(description, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn(unit), Elapsed(), Remaining())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """A line at most every `QUIET_INTERVAL` seconds; short work says nothing."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < QUIET_INTERVAL:
            return
        self.last = now
        seconds = now - self.start
        message = f"{self.description}: {self.done}/{self.total} {self.unit} in {seconds:.0f} s"
        print(message, file=sys.stderr, flush=True)
