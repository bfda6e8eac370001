"""Names of lines beside the axes, at the heights where the lines end, none on another."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from flowopd.reporting.looks import Look
from flowopd.reporting.plot import text_width

MOST_NAMES, MOST_WIDTH = 6, 130.0  # of lines that can be named at their ends
FONT_SIZE = 9.0
GAP = 0.08  # between two names, as a share of the axes' height

LOWEST = 0.03  # below are the numbers of the x axis


def can_name(names: Sequence[str]) -> bool:
    """Whether there is room for the names at the ends of their lines; others need a legend."""
    return len(names) <= MOST_NAMES and widest(names) <= MOST_WIDTH


def widest(names: Sequence[str]) -> float:
    return max((text_width(name, FONT_SIZE) for name in names), default=0.0)


def name_lines(axes: Axes, ends: Mapping[str, float], looks: Mapping[str, Look]) -> None:
    """Write every line's name at the height of its end; the axes' limits have to be final."""
    to_axes = axes.transData + axes.transAxes.inverted()
    left = axes.get_xlim()[0]
    heights = {
        name: float(to_axes.transform((left, end))[1])
        for name, end in ends.items()
        if math.isfinite(end)
    }
    for name, height in spread(heights, GAP).items():
        axes.text(
            1.02,
            height,
            name,
            transform=axes.transAxes,
            color=looks[name].ink,
            fontsize=FONT_SIZE,
            verticalalignment="center",
        )


def spread(heights: Mapping[str, float], gap: float, lowest: float = LOWEST) -> dict[str, float]:
    """The heights moved apart by at least ``gap``, in their order and about where they were."""
    groups: list[list[str]] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        groups.append([name])
        while len(groups) > 1 and _overlap(groups[-2], groups[-1], heights, gap):
            last = groups.pop()
            groups[-1] += last
    apart: dict[str, float] = {}
    for group in groups:
        for place, name in enumerate(group):
            apart[name] = max(_bottom(group, heights, gap) + place * gap, lowest)
            lowest = apart[name] + gap
    return apart


def _overlap(
    lower: Sequence[str], upper: Sequence[str], heights: Mapping[str, float], gap: float
) -> bool:
    return _bottom(lower, heights, gap) + gap * len(lower) > _bottom(upper, heights, gap)


def _bottom(group: Sequence[str], heights: Mapping[str, float], gap: float) -> float:
    """Where the lowest of a group stands when the group lies around its own centre."""
    centre = sum(heights[name] for name in group) / len(group)
    return centre - gap * (len(group) - 1) / 2
