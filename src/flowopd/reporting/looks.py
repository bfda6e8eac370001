"""One look for each row, the same in every figure and table of a report."""

from collections.abc import Iterable
from typing import NamedTuple

GREY = "#6f6f6f"
# Okabe & Ito's colours without black and yellow, and a wine red: told apart by the colour-blind.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
DASHES = ("solid", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))
PALENESS = (0.0, 0.65, 0.35, 0.88)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Dash = str | tuple[int, tuple[float, ...]]


class Look(NamedTuple):
    """Colours and dashes of a row. Rows that share a colour differ in dash and fill."""

    color: str
    dash: Dash
    marker: str
    fill: str
    """Of a bar, which has an outline in the colour itself."""
    ink: str
    """The colour dark enough for text."""
    cycle: int
    """0 for the first rows, which have the palette to themselves."""


def look(number: int) -> Look:
    """The look of the ``number``-th row."""
    cycle, place = divmod(number, len(PALETTE))
    color = PALETTE[place]
    return Look(
        color=color,
        dash=DASHES[cycle % len(DASHES)],
        marker=MARKERS[(place + cycle) % len(MARKERS)],
        fill=mixed(color, "#ffffff", PALENESS[cycle % len(PALENESS)]),
        ink=mixed(color, "#000000", 0.3),
        cycle=cycle,
    )


def looks(names: Iterable[str], base: str) -> dict[str, Look]:
    """A look for every name, in their order; the base is grey."""
    others = dict.fromkeys(name for name in names if name != base)
    plain = Look(GREY, "solid", "o", GREY, "#4a4a4a", 0)
    return {base: plain} | {name: look(number) for number, name in enumerate(others)}


def mixed(color: str, other: str, share: float) -> str:
    """``color`` with a share of ``other``."""
    pairs = zip(_channels(color), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))
