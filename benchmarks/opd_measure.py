"""Measuring two things against each other: time in pairs, forwards by counting, memory."""

import contextlib
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def now(device: torch.device) -> float:
    """Seconds: by the clock once a GPU has done its work, on a CPU those spent on this process.

    A process that has to share its processor with others takes longer, and no more of these.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """What the work takes."""
    start = now(device)
    work()
    return now(device) - start


@dataclass(frozen=True)
class Pairs:
    """Times of one thing and of another, taken in turns."""

    first: list[float]
    second: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the second is, of each pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def in_pairs(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int, device: torch.device
) -> Pairs:
    """first, second, first, second, ...: a busy machine slows both of a pair."""
    times = [(seconds(first, device), seconds(second, device)) for _ in range(repeats)]
    return Pairs([a for a, _ in times], [b for _, b in times])


class Forwards:
    """Counts the samples that go through networks, inside a `with`."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.rows = 0
        self._networks = list(networks)
        self._hooks: list[Any] = []

    def __enter__(self) -> "Forwards":
        for network in self._networks:
            self._hooks.append(network.register_forward_pre_hook(self._count, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, network: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self.rows += len(named["hidden_states"])


class Growth:
    """The most bytes that were in use at once beyond those at the start."""

    bytes: int = 0


@contextlib.contextmanager
def growth(device: torch.device) -> Iterator[Growth]:
    """Watch the memory of what is done inside."""
    found = Growth()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - start
        return
    with LiveTensors() as live:
        yield found
    found.bytes = live.most


class LiveTensors(TorchDispatchMode):
    """Follows the storages that are made inside, from the first tensor on them to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = [one for one in tree_iter((args, kwargs)) if torch.is_tensor(one)]
        before = [one.untyped_storage() for one in given]
        result = function(*args, **(kwargs or {}))
        for one in tree_iter(result):
            if torch.is_tensor(one):
                self._saw(one.untyped_storage(), before)
        return result

    def _saw(self, storage: Any, before: list[Any]) -> None:
        """A storage that is none of the inputs' and was not seen is new."""
        if storage in self._known or any(storage is one for one in before):
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
