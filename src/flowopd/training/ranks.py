"""Several processes as one: who does what, sums over all, and waiting for each other.

With one process every function is the identity. What is small goes from host to host, where the
end of a process is noticed at once; gradients go from device to device.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.team import Alone, Team

T = TypeVar("T")
TRANSFER = timedelta(hours=1)
"""For what goes from device to device: all processes are there when it begins."""
PATIENCE = timedelta(days=7)
"""For everything else: the main process may draw, score or evaluate before it comes."""
ENDED = (
    "Another process of this run has ended, and this one ends with it; what went wrong is in what "
    "that one wrote. The checkpoints are whole: the same command goes on from the last of them."
)


def processes() -> int:
    """How many processes a launcher started (`torchrun`, `accelerate launch`)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def named_process() -> Iterator[None]:
    """Inside, an error says which of several processes had it."""
    try:
        yield
    except FlowOPDError as error:
        if processes() > 1 and type(error) is FlowOPDError:
            number = int(os.environ.get("RANK", "0"))
            raise FlowOPDError(f"process {number} of {processes()}: {error}") from error
        raise


def start_team() -> Team:
    """All processes, or this one alone."""
    return Ranks() if processes() > 1 else Alone()


class Ranks:
    """What the launcher made of this process; a `Team`."""

    _hosts: ClassVar[Any] = None
    """The group of all processes by way of their hosts; made once."""

    def __init__(self) -> None:
        from accelerate import PartialState

        _check_devices()
        cpu = not torch.accelerator.is_available()
        self._state = PartialState(cpu=cpu, timeout=TRANSFER)
        self.index: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.main: bool = self._state.is_main_process
        if self.count != processes():
            raise FlowOPDError(
                f"{processes()} processes were started, which cannot work together on this "
                f"machine's device ({self._state.device}); start one."
            )
        if self.count > 1 and Ranks._hosts is None:
            with _together():
                Ranks._hosts = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def mine(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, from this process's number on."""
        return list(items[self.index :: self.count])

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _together():
            torch.distributed.all_gather_object(found, value, group=self._hosts)
        return found

    def gather(self, values: Tensor) -> tuple[Tensor, slice]:
        """The values [B, ...] of all processes, one after the other, and where one's own are."""
        if self.count == 1:
            return values, slice(0, len(values))
        parts: list[Tensor] = self.collect(values.cpu())
        start = sum(len(part) for part in parts[: self.index])
        return torch.cat(parts), slice(start, start + len(values))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in one transfer."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        on_host = flat.device.type == "cpu"
        if not on_host:
            self.wait()  # a transfer between devices would not notice that a process has ended
        with _together():
            torch.distributed.all_reduce(flat, group=self._hosts if on_host else None)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def merge(self, sums: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Sums and counts by name, added over the processes."""
        if self.count == 1:
            return sums
        merged: dict[str, tuple[float, float]] = {}
        for part in self.collect(sums):
            for name, (total, count) in part.items():
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return any(self.collect(flag))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with _together():
                torch.distributed.barrier(group=self._hosts)

    def leave(self) -> None:
        """The work is done; nothing that is shared comes after this."""
        if self.count > 1:
            Ranks._hosts = None
            self._state.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """A transfer that fails: the process at its other end is not there any more."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise FlowOPDError(f"{ENDED} (Here: {str(error).strip().splitlines()[0]})") from error


def _check_devices() -> None:
    """Refuse more processes on this machine than it has GPUs."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise FlowOPDError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} GPUs, "
            "and each needs its own; start as many processes as there are GPUs."
        )
