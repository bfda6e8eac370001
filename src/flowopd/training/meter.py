"""Means of what is worth logging, collected over the pieces of an update."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from flowopd.training.ranks import Ranks


class Meter:
    """Sums and counts by name. What is on a device stays there until it is asked for."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor | float) -> None:
        """One number, or one for each sample; what is not a number is left out."""
        kept = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        self._values[name].append(kept.detach().reshape(-1))

    def take(self, ranks: Ranks) -> dict[str, float]:
        """The means over all processes; then everything starts anew."""
        sums = _sums(self._values)
        self._values.clear()
        merged = ranks.merge(sums)
        return {name: total / count for name, (total, count) in sorted(merged.items()) if count}


def _sums(values: dict[str, list[Tensor]]) -> dict[str, tuple[float, float]]:
    """Sum and count by name, with one transfer from each device."""
    names = [name for name, tensors in values.items() for _ in tensors]
    numbers = _numbers([tensor for tensors in values.values() for tensor in tensors])
    sums: dict[str, tuple[float, float]] = {}
    for name, found in zip(names, numbers, strict=True):
        total, count = sums.get(name, (0.0, 0.0))
        real = [number for number in found if not math.isnan(number)]
        sums[name] = (total + sum(real), count + len(real))
    return sums


def _numbers(tensors: Sequence[Tensor]) -> list[list[float]]:
    """What is in flat tensors."""
    found: dict[int, list[float]] = {}
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        number = torch.float64 if device.type == "cpu" else torch.float32
        together = torch.cat([tensors[i].to(number) for i in places])
        parts = together.split([len(tensors[i]) for i in places])
        found |= {i: part.tolist() for i, part in zip(places, parts, strict=True)}
    return [found[i] for i in range(len(tensors))]
