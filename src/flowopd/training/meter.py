"""Means of what is worth logging, collected over the pieces of an update."""

import math
from collections import defaultdict

from torch import Tensor

from flowopd.training.ranks import Ranks


class Meter:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)

    def add(self, name: str, values: Tensor | float) -> None:
        """One number, or one for each sample; what is not a number is left out."""
        numbers = [float(values)] if isinstance(values, float | int) else values.tolist()
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if not math.isnan(number):
                self._sums[name] += number
                self._counts[name] += 1

    def take(self, ranks: Ranks) -> dict[str, float]:
        """The means over all processes; then everything starts anew."""
        sums = {name: (self._sums[name], self._counts[name]) for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        merged = ranks.merge(sums)
        return {name: total / count for name, (total, count) in sorted(merged.items()) if count}
