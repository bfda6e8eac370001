"""Curves over training: seeds as thin lines, their mean as a thick one, named at its end."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from flowopd.reporting.labels import name_lines
from flowopd.reporting.looks import Look
from flowopd.reporting.plot import SOFT, THOUSANDS
from flowopd.reporting.tracks import Track, mean_track, smoothed, thinned

X_LABELS = {"images": "images generated", "seconds": "seconds of training", "update": "update"}
LOG_SPAN = 30.0  # the ratio of largest to smallest from which an axis is logarithmic


class Reference(NamedTuple):
    """A dashed line across the panel."""

    value: float
    text: str


class LinePanel(NamedTuple):
    """One panel: what is drawn for each row, and how the axes are."""

    title: str
    x: str
    rows: Mapping[str, Sequence[Track]]
    smooth: bool = False
    reference: Reference | None = None
    limits: tuple[float, float] | None = None
    zero: bool = False
    """A line at 0, for what has a sign."""
    named: bool = True
    """Whether the lines' names stand at their ends."""


def draw_lines(axes: Axes, panel: LinePanel, looks: Mapping[str, Look]) -> None:
    """The panel on its axes."""
    axes.set_title(panel.title)
    axes.set_xlabel(X_LABELS.get(panel.x, panel.x))
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.locator_params(axis="x", nbins=5)
    if panel.zero:
        axes.axhline(0, color="#8a8a86", linewidth=0.8)
    ends = {
        row: _draw_row(axes, tracks, looks[row], panel.smooth) for row, tracks in panel.rows.items()
    }
    if panel.reference is not None:
        _draw_reference(axes, panel.reference)
    _set_scale(axes, panel)
    if panel.named:
        name_lines(axes, ends, looks)


def _draw_row(axes: Axes, tracks: Sequence[Track], look: Look, smooth: bool) -> float:
    """Draws seeds and their mean; the height at which the mean ends."""
    whole = [smoothed(found) if smooth else found for found in tracks]
    mean = thinned(mean_track(whole))
    behind = whole if len(whole) > 1 else list(tracks) if smooth else []
    for found in map(thinned, behind):
        axes.plot(found.x, found.y, color=look.color, linewidth=0.6, alpha=0.38, zorder=2)
    axes.plot(
        mean.x,
        mean.y,
        color=look.color,
        linestyle=look.dash,
        linewidth=1.7,
        marker=look.marker if mean.x.size <= 2 else None,
        markersize=3,
        zorder=3,
    )
    return float(mean.y[-1]) if mean.y.size else math.nan


def _draw_reference(axes: Axes, reference: Reference) -> None:
    axes.axhline(reference.value, color=SOFT, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        reference.text,
        (0, reference.value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=8.5,
        color=SOFT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        zorder=4,
    )


def _set_scale(axes: Axes, panel: LinePanel) -> None:
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
        return
    values = [thinned(smoothed(found)).y for tracks in panel.rows.values() for found in tracks]
    everything = np.concatenate(values) if values else np.ones(1)
    low, high = float(everything.min()), float(everything.max())
    if panel.smooth and low > 0 and high / low >= LOG_SPAN:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.grid(visible=False, which="minor")
        axes.tick_params(axis="y", which="minor", length=0)
