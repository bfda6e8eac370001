"""Each variant against the first: gradients, memory, forwards and time."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowopd.planning.outline import bytes_in
from flowopd.tasks.batches import Sample
from opd_measure import Forwards, growth, seconds
from opd_setup import BASELINE, VARIANTS
from opd_sides import Side

Draw = Callable[[], list[Sample]]
"""The samples of one update after the other, the same for all variants."""


@dataclass
class Row:
    """What was measured of a variant."""

    name: str
    label: str
    held: int
    """Bytes of weights and of the optimizer's state."""
    peak: int | None
    """Bytes at most in an update, with what is held; None: not to be told."""
    forwards_per_image: float = 0.0
    images_per_second: float = 0.0
    ratios: list[float] = field(default_factory=list)
    """How many times as fast as the first variant, pair by pair; empty for the first."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios) if self.ratios else 1.0


def compare(
    sides: Mapping[str, Side],
    draw: Draw,
    device: torch.device,
    repeats: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Warm up, weigh, then let each variant and the first take turns."""
    rows = [_weighed(name, side, draw, device, say) for name, side in sides.items()]
    counts = {name: Forwards(side.networks().values()) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    images = dict.fromkeys(sides, 0)

    def taken(name: str, samples: list[Sample]) -> float:
        with counts[name]:
            times[name].append(seconds(lambda: sides[name].update(samples), device))
        images[name] += len(samples)
        return times[name][-1]

    first = rows[0]
    for row in rows[1:] or rows:
        for _ in range(repeats):
            samples = draw()
            row.ratios.append(taken(first.name, samples) / taken(row.name, samples))
        say(f"({row.name}) {row.ratio:.2f} times as fast as ({first.name})")
    first.ratios.clear()
    for row in rows:
        row.forwards_per_image = counts[row.name].rows / images[row.name]
        row.images_per_second = images[row.name] / sum(times[row.name])
    return rows


def _weighed(
    name: str, side: Side, draw: Draw, device: torch.device, say: Callable[[str], None]
) -> Row:
    """Two updates: one to make the optimizer's state, one to watch."""
    say(f"warming up ({name})")
    variant = VARIANTS.get(name)
    row = Row(name, BASELINE if variant is None else variant.label, held=0, peak=None)
    side.update(draw())
    row.held = bytes_in(side.held())
    if device.type == "cpu" and variant is not None and variant.compiled:
        side.update(draw())  # what compiled code allocates on a CPU cannot be seen
        return row
    with growth(device) as grown:
        side.update(draw())
    row.peak = row.held + grown.bytes
    return row


def cosines(sides: Mapping[str, Side], samples: list[Sample]) -> dict[str, float]:
    """Between the gradient of every variant that does all the work and that of the first."""
    found = {
        name: _flat(side.gradients(samples))
        for name, side in sides.items()
        if name not in VARIANTS or VARIANTS[name].all_steps
    }
    if not found:
        return {}
    first = next(iter(found.values()))
    return {name: cosine(gradient, first) for name, gradient in found.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one, other) / one.norm() / other.norm())


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All of them in the order of their keys, float64."""
    return torch.cat([gradients[key].double().flatten().cpu() for key in sorted(gradients)])
