"""A process that ends when the one that started it does, however that one ends."""

import contextlib
import ctypes
import os
import signal

from flowopd.errors import FlowOPDError

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """See that this process does not outlive the one that started it, if that is killed."""
    _require(parent)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Linux alone has this
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _require(parent)  # it may have ended before the system was told


def _require(parent: int) -> None:
    if os.getppid() != parent:
        raise FlowOPDError("The run that started this worker has ended; start it again.")
