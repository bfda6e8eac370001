"""What a figure becomes: panels as SVG, a caption, notes, and a legend where one is needed."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from flowopd.reporting.labels import widest
from flowopd.reporting.looks import Look
from flowopd.reporting.plot import Size, svg

LINES_SIZE = Size(390.0, 240.0)


class Drawn(NamedTuple):
    """A figure as the page shows it."""

    title: str
    caption: str
    panels: Sequence[str]
    notes: Sequence[str]
    """Sentences on how to read it, and on what is missing."""
    legend: Mapping[str, Look]
    """Empty where the lines are named in the panels."""
    narrow: bool = False
    """Up to four panels beside each other, otherwise three."""


def panel_svgs(draws: Mapping[str, Callable[[Axes], None]], key: str, size: Size) -> list[str]:
    """One <svg> for each panel by its title."""
    return [
        svg(draw, size=size, key=f"{key}-{number}", label=name)
        for number, (name, draw) in enumerate(draws.items())
    ]


def lines_size(names: Sequence[str], named: bool) -> Size:
    """With room at the right for the lines' names, if they stand there."""
    if not named or not names:
        return LINES_SIZE
    return LINES_SIZE._replace(right=10 + widest(names))


def missing(reason: str, rows: Sequence[str]) -> list[str]:
    """A sentence on the rows that a figure cannot show, if there are any."""
    return [f"Missing ({reason}): {listed(rows)}."] if rows else []


def listed(names: Sequence[str]) -> str:
    return ", ".join(names)
