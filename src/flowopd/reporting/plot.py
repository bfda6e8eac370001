"""A plot as SVG inside a page: no global state, no date, no address, ids of its own.

Text stays text, in the page's own font. It is laid out for DejaVu Sans, which is wider than what
pages are set in, so that nothing runs out of its place.
"""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, SOFT, GRID = "#222222", "#6a6a6a", "#e7e7e4"
UNIT = 72  # units of a figure's coordinates in what matplotlib calls an inch

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#b5b5b0",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#b5b5b0",
    "ytick.color": "#b5b5b0",
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.solid_capstyle": "round",
}


class Size(NamedTuple):
    """Of a plot and of the room around its axes, in units of the SVG."""

    width: float
    height: float
    left: float = 40.0
    right: float = 10.0
    top: float = 24.0
    bottom: float = 38.0


def svg(draw: Callable[[Axes], None], *, size: Size, key: str, label: str) -> str:
    """What ``draw`` draws on axes, as an <svg> element; ``key`` is unique on the page."""
    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": key}], after_reset=True):
        figure = Figure(figsize=(size.width / UNIT, size.height / UNIT))
        figure.subplots_adjust(
            left=size.left / size.width,
            right=1 - size.right / size.width,
            top=1 - size.top / size.height,
            bottom=size.bottom / size.height,
        )
        draw(figure.add_subplot())
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None})
    return embedded(output.getvalue(), key, label)


def text_width(text: str, font_size: float) -> float:
    """About how wide a text is, and not less."""
    return 0.6 * font_size * len(text)


def embedded(text: str, key: str, label: str) -> str:
    """matplotlib's file as an element of a page: ids with ``key``, no metadata, no namespaces."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"#([\w.-]+)", " ".join(_references(root))))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_cleaned(element.tag, attributes, key, used))
    size = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": size, "class": "plot", "role": "img", "aria-label": label})
    root.tail = None
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def thousands(value: float, _: object = None) -> str:
    """12000 as 12k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


THOUSANDS = FuncFormatter(thousands)


def _references(root: ElementTree.Element) -> list[str]:
    """The attributes that name other elements."""
    return [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if _local(name) == "href" or value.startswith("url(#")
    ]


def _cleaned(tag: str, attributes: dict[str, str], key: str, used: set[str]) -> dict[str, str]:
    cleaned: dict[str, str] = {}
    for name, value in attributes.items():
        if name == "id":
            if value in used:
                cleaned[name] = f"{key}-{value}"
        elif name == "href":
            cleaned[name] = f"#{key}-{value.removeprefix('#')}"
        elif value.startswith("url(#"):
            cleaned[name] = f"url(#{key}-{value.removeprefix('url(#')}"
        elif name == "d":
            cleaned[name] = _short_path(value)
        elif tag == "text" and name == "style":
            cleaned[name] = re.sub(r"font-family: [^;]*;? ?", "", value)
        elif value != "rotate(-0)" and not re.fullmatch(r"rotate\(-?0 [\d. -]*\)", value):
            cleaned[name] = value
    return cleaned


def _short_path(path: str) -> str:
    """Two decimals are enough for a screen and for print."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", path)
    return " ".join(rounded.split())


def _local(name: Any) -> str:
    return str(name).rpartition("}")[2]
