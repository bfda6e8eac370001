"""Who works in a folder: a lock that its holder's end releases, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowopd.errors import FlowOPDError

LOCK, LOCKS = ".lock", ".locks"
PATIENCE = 1.0  # seconds: someone who only looks holds a lock for a moment


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock inside; refused while another process holds it. ``what`` begins a sentence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + PATIENCE
        while not _try(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise FlowOPDError(
                    f"{what} is being worked on by {_holder(path)}. Wait for it to end, or end it."
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> str:
    """Who holds the lock, in words; empty when nobody does."""
    try:
        with path.open(encoding="utf-8") as file:
            return "" if _try(file.fileno(), fcntl.LOCK_SH) else _holder(path)
    except OSError:
        return ""


def _try(number: int, operation: int) -> bool:
    """Released when the file is closed."""
    try:
        fcntl.flock(number, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    pid = path.read_text(encoding="utf-8").strip()
    return f"process {pid}" if pid else "another process"
