"""SIGTERM and Ctrl-C: the step is finished and saved, and then the run ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from flowopd.errors import FlowOPDError


class Interrupted(FlowOPDError):  # noqa: N818 - it is no error of anyone's
    """The run was asked to end, and ended with everything saved."""


class Asked:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.by = ""

    def __bool__(self) -> bool:
        return bool(self.by)


@contextlib.contextmanager
def asked_to_end() -> Iterator[Asked]:
    """Inside, the first signal only takes note; a second Ctrl-C interrupts at once."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.by = signal.Signals(number).name

    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for installed, handler in before.items():
            signal.signal(installed, handler)
