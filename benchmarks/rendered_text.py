"""Pictures with a known text: several fonts, sizes, colours and grounds, with things beside it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flowopd.errors import FlowOPDError

SIDE = 512
MARGIN = 24
SMALLEST, LARGEST = 24, 72  # pixels of a font
CONTRAST = 90  # of 255, between ink and ground
TILT = 6.0  # degrees, either way

# The fonts that matplotlib's wheel brings, and a third family that is the system's.
BUNDLED = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
)
SYSTEM = (
    "LiberationSans-Regular.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationSansNarrow-Regular.ttf",
)
_WORDS = """
autumn bakery beyond bright coffee copper corner dancing dream eleven evening fresh garden
golden harbour honey island jasmine kitchen lantern library market midnight mountain music north
ocean orchard paper planet quiet railway river silver spring station street studio summer sunday
theatre tomorrow tulip under velvet village water welcome window winter wonder yellow zebra
"""
WORDS = _WORDS.split()
ENDS = ("", "", "", "", "", "!", "?", " 24", " 7", " No. 5", " 2026", " & Co", " 9-17")


@dataclass(frozen=True)
class Sign:
    image: NDArray[np.uint8]
    text: str
    font: str
    size: int
    kind: str
    """Of the ground and of what is beside the text."""


def signs(count: int) -> list[Sign]:
    """The first so many, always the same ones."""
    return [sign(number) for number in range(count)]


def sign(number: int, *, system_fonts: bool = True) -> Sign:
    """Always the same; without system fonts it is in DejaVu Sans where it would be in such."""
    rng = np.random.default_rng([5, number])
    text = _text(rng)
    file = str(rng.choice([*BUNDLED, *SYSTEM]))
    if file in SYSTEM:
        path = _system_font(file) if system_fonts else _bundled(BUNDLED[0])
    else:
        path = _bundled(file)
    font, lines = _fitting(text, path, int(rng.integers(SMALLEST, LARGEST + 1)))
    ground = str(rng.choice(["flat", "gradient", "speckled"]))
    beside = str(rng.choice(["nothing", "shapes", "lines", "shapes and lines"]))
    ink, paper = _colors(rng)
    canvas = Image.fromarray(_ground(rng, ground, paper))
    box = _place(rng, font, lines)
    _draw_beside(rng, canvas, beside, box)
    tilt = float(rng.uniform(-TILT, TILT)) if rng.random() < 0.3 else 0.0
    _write(canvas, font, lines, box, ink, tilt)
    kind = f"{ground}, {beside}" + (", tilted" if tilt else "")
    return Sign(np.asarray(canvas, np.uint8), text, path.stem, int(font.size), kind)


def _text(rng: np.random.Generator) -> str:
    words = [str(word) for word in rng.choice(WORDS, rng.integers(1, 4), replace=False)]
    style = rng.integers(4)
    if style == 0:
        words = [word.upper() for word in words]
    elif style < 3:
        words = [word.capitalize() for word in words]
    return " ".join(words) + str(rng.choice(ENDS))


def _fitting(text: str, path: Path, size: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """The text on one line or two, in the size wished for or the largest one that fits."""
    words, room = text.split(" "), SIDE - 4 * MARGIN
    middle = (len(words) + 1) // 2
    while True:
        font = ImageFont.truetype(path, size)
        if font.getlength(text) <= room:
            return font, [text]
        lines = [" ".join(words[:middle]), " ".join(words[middle:])]
        if lines[1] and max(map(font.getlength, lines)) <= room:
            return font, lines
        size -= 2


def _colors(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ink and paper whose brightness differs enough."""
    while True:
        ink, paper = rng.integers(0, 256, (2, 3))
        weights = (0.299, 0.587, 0.114)
        if abs(float(ink @ weights) - float(paper @ weights)) >= CONTRAST:
            return ink, paper


def _ground(rng: np.random.Generator, kind: str, paper: NDArray[np.int64]) -> NDArray[np.uint8]:
    ground = np.broadcast_to(paper.astype(np.float64), (SIDE, SIDE, 3)).copy()
    if kind == "gradient":
        ground += np.linspace(-25, 25, SIDE)[:, None, None]
    if kind == "speckled":
        ground += rng.normal(0, 8, (SIDE, SIDE, 1))
    return ground.clip(0, 255).astype(np.uint8)


def _place(
    rng: np.random.Generator, font: ImageFont.FreeTypeFont, lines: list[str]
) -> tuple[int, int, int, int]:
    width = int(max(map(font.getlength, lines))) + 1
    height = int(1.4 * font.size * len(lines))
    left = int(rng.integers(2 * MARGIN, SIDE - 2 * MARGIN - width + 1))
    top = int(rng.integers(3 * MARGIN, SIDE - 3 * MARGIN - height + 1))
    return left, top, left + width, top + height


def _draw_beside(
    rng: np.random.Generator, canvas: Image.Image, kind: str, box: tuple[int, int, int, int]
) -> None:
    """Shapes and lines above and below the text, none of them across it."""
    pen = ImageDraw.Draw(canvas)
    bands = ((0, box[1] - 2 * MARGIN), (box[3] + 2 * MARGIN, SIDE))
    for top, bottom in bands:
        if bottom - top < MARGIN:
            continue
        for _ in range(3 if "shapes" in kind else 0):
            x, y = int(rng.integers(0, SIDE)), int(rng.integers(top, bottom))
            radius = int(rng.integers(8, 40))
            color = tuple(int(value) for value in rng.integers(0, 256, 3))
            place = (x - radius, max(top, y - radius), x + radius, min(bottom, y + radius))
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(place, fill=color)
        for _ in range(2 if "lines" in kind else 0):
            y = int(rng.integers(top, bottom))
            color = tuple(int(value) for value in rng.integers(0, 256, 3))
            pen.line((0, y, SIDE, y), fill=color, width=int(rng.integers(1, 6)))


def _write(
    canvas: Image.Image,
    font: ImageFont.FreeTypeFont,
    lines: list[str],
    box: tuple[int, int, int, int],
    ink: NDArray[np.int64],
    tilt: float,
) -> None:
    layer = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(layer)
    for number, line in enumerate(lines):
        pen.text((box[0], box[1] + 1.4 * font.size * number), line, font=font, fill=255)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    if tilt:
        layer = layer.rotate(tilt, Image.Resampling.BICUBIC, center=middle)
    canvas.paste(tuple(int(value) for value in ink), mask=layer)


def _bundled(file: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file


def _system_font(file: str) -> Path:
    if file in missing_fonts():
        raise FlowOPDError(
            f"The font {file} is not installed here, and the texts would not be the same without "
            "it; on Debian it is in fonts-liberation or fonts-liberation-sans-narrow."
        )
    return _installed()[file]


def missing_fonts() -> list[str]:
    """Those of SYSTEM that are not here."""
    return [file for file in SYSTEM if file not in _installed()]


@cache
def _installed() -> dict[str, Path]:
    return {Path(path).name: Path(path) for path in findSystemFonts(fontext="ttf")}
