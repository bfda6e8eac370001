"""Several processes as one: who does what, sums over all, and waiting for each other.

With one process every function is the identity.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """What accelerate's launcher made of this process."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.index: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.main: bool = self._state.is_main_process

    def mine(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, from this process's number on."""
        return list(items[self.index :: self.count])

    def gather(self, values: Tensor) -> tuple[Tensor, slice]:
        """The values [B, ...] of all processes, one after the other, and where one's own are."""
        if self.count == 1:
            return values, slice(0, len(values))
        found: list[Tensor | None] = [None] * self.count
        torch.distributed.all_gather_object(found, values.cpu())
        parts = [part for part in found if part is not None]
        start = sum(len(part) for part in parts[: self.index])
        return torch.cat(parts), slice(start, start + len(values))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in one transfer."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def merge(self, sums: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Sums and counts by name, added over the processes."""
        if self.count == 1:
            return sums
        found: list[dict[str, tuple[float, float]] | None] = [None] * self.count
        torch.distributed.all_gather_object(found, sums)
        merged: dict[str, tuple[float, float]] = {}
        for part in found:
            for name, (total, count) in (part or {}).items():
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return self.merge({"flag": (float(flag), 1.0)})["flag"][0] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self._state.wait_for_everyone()
