"""Plots of the evaluation: rows of a metric as bars, and a metric against a number."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from flowopd.reporting.labels import can_name, name_lines
from flowopd.reporting.looks import Look
from flowopd.reporting.plot import INK, SOFT

NAME_SIZE = 9.0
BAR_SPAN = 0.25
"""Bars from zero show differences of at least this share of the longest; smaller ones are points on
an axis that begins elsewhere, for a bar's length has to mean something."""


class Mark(NamedTuple):
    """A mean with its interval, whose limits may be unknown."""

    mean: float
    low: float | None
    high: float | None

    @property
    def below(self) -> float:
        return 0.0 if self.low is None else max(self.mean - self.low, 0.0)

    @property
    def above(self) -> float:
        return 0.0 if self.high is None else max(self.high - self.mean, 0.0)


def draw_bars(
    axes: Axes, metric: str, marks: Mapping[str, Mark | None], looks: Mapping[str, Look]
) -> None:
    """One metric: a horizontal bar a row, from the top down, with its interval and its number."""
    names = list(marks)
    places = {row: -number for number, row in enumerate(names)}
    known = {row: mark for row, mark in marks.items() if mark is not None}
    first = marks[names[0]]
    if first is not None:
        axes.axvline(first.mean, color="#9a9a96", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    zoomed = is_zoomed([mark.mean for mark in known.values()])
    axes.set_title(metric)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(zoomed is False)
    for row, mark in known.items():
        look, y = looks[row], places[row]
        if zoomed:
            axes.plot(mark.mean, y, "o", color=look.color, markersize=6, markerfacecolor=look.fill)
        else:
            axes.barh(y, mark.mean, height=0.66, color=look.fill, edgecolor=look.color)
        axes.plot(
            [mark.mean - mark.below, mark.mean + mark.above],
            [y, y],
            color=look.color if zoomed else INK,
            linewidth=1.2,
        )
        axes.annotate(
            f"{mark.mean:.3f}",
            (mark.mean + mark.above, y),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=8.5,
            color=INK,
        )
    for row in names:
        if marks[row] is None:
            place = axes.get_yaxis_transform()
            axes.text(0.01, places[row], "–", transform=place, color=SOFT, va="center")
    axes.set_yticks([places[row] for row in names], names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=NAME_SIZE)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.16)
    if not zoomed:
        axes.set_xlim(left=min([0.0, *(mark.mean - mark.below for mark in known.values())]))


def is_zoomed(means: Sequence[float]) -> bool:
    """Whether bars from zero would hide the differences."""
    if not means or min(means) <= 0:
        return False
    return (max(means) - min(means)) / max(means) < BAR_SPAN


class Point(NamedTuple):
    x: float
    mark: Mark


def draw_points(
    axes: Axes,
    metric: str,
    series: Mapping[str, Sequence[Point]],
    looks: Mapping[str, Look],
    x_label: str,
) -> None:
    """One metric: a line a series, an interval at every point, set apart a little in x."""
    axes.set_title(metric)
    axes.set_xlabel(x_label)
    ticks = sorted({point.x for points in series.values() for point in points})
    step = min(np.diff(ticks), default=1.0)
    for number, (name, points) in enumerate(series.items()):
        look = looks[name]
        shift = (number - (len(series) - 1) / 2) * step * 0.06
        order = sorted(points)
        axes.errorbar(
            [point.x + shift for point in order],
            [point.mark.mean for point in order],
            yerr=[[p.mark.below for p in order], [p.mark.above for p in order]],
            color=look.color,
            linestyle=look.dash,
            marker=look.marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2.5,
        )
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.margins(x=0.08)
    if can_name(list(series)):
        ends = {name: max(points).mark.mean for name, points in series.items() if points}
        name_lines(axes, ends, looks)
