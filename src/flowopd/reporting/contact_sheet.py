"""A contact sheet: many pictures on one, each above its caption."""

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, sqrt
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from flowopd.errors import FlowOPDError

CELL = 192  # pixels of a picture's side on the sheet, about
GAP = 12
FONT_SIZE = 14
CAPTION_LINES = 3
KERNING = 4  # characters by which a longer text may be the narrower one
FRAME = (205, 205, 205)
PAPER, INK = (255, 255, 255), (20, 20, 20)


class Layout(NamedTuple):
    """Where things go: columns, the picture's size in a cell, the height of a caption."""

    columns: int
    rows: int
    width: int
    height: int
    caption: int


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """The pictures in reading order on a grid that is about square, or ``columns`` wide."""
    if not images:
        raise FlowOPDError("A contact sheet needs at least one picture; there is none.")
    if len(images) != len(captions):
        raise FlowOPDError(f"{len(images)} pictures have {len(captions)} captions.")
    font = ImageFont.load_default(FONT_SIZE)
    cells = [_fit(image) for image in images]
    width = max(cell.width for cell in cells)
    texts = [wrap(caption, font, width) for caption in captions]
    line = _line_height(font)
    layout = _layout(cells, width, columns, max(len(text) for text in texts) * line)
    sheet = Image.new("RGB", _sheet_size(layout), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        row, column = divmod(index, layout.columns)
        left = GAP + column * (layout.width + GAP)
        top = GAP + row * (layout.height + layout.caption + 2 * GAP)
        sheet.paste(cell, (left, top))
        draw.rectangle((left - 1, top - 1, left + cell.width, top + cell.height), outline=FRAME)
        for number, words in enumerate(text):
            draw.text((left, top + layout.height + 4 + number * line), words, INK, font)
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines that are not wider than ``width``, at most three; what is cut ends with an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    cut = len(lines) > CAPTION_LINES
    lines = lines[:CAPTION_LINES]
    return [
        _shorten(line, font, width, ellipsis=cut and number == CAPTION_LINES - 1)
        for number, line in enumerate(lines)
    ]


def _shorten(
    line: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    *,
    ellipsis: bool,
) -> str:
    text = line + "…" if ellipsis else line
    if line and font.getlength(text) > width:
        fitting = bisect_right(
            range(len(line)),
            float(width),
            key=lambda end: font.getlength(line[:end].rstrip() + "…"),
        )
        line = line[: fitting + KERNING]
    while line and font.getlength(text) > width:
        line = line[:-1]
        text = line.rstrip() + "…"
    return text


def _fit(image: Image.Image) -> Image.Image:
    """Small pictures enlarged by a whole factor with hard pixels, large ones made smaller."""
    side = max(image.size)
    if side <= CELL:
        factor = max(CELL // side, 1)
        size = (image.width * factor, image.height * factor)
        return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    scale = CELL * 1.5 / side if side > CELL * 1.5 else 1.0
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _layout(cells: Sequence[Image.Image], width: int, columns: int | None, caption: int) -> Layout:
    columns = min(columns or ceil(sqrt(len(cells))), len(cells))
    height = max(cell.height for cell in cells)
    return Layout(columns, ceil(len(cells) / columns), width, height, caption)


def _sheet_size(layout: Layout) -> tuple[int, int]:
    width = GAP + layout.columns * (layout.width + GAP)
    height = GAP + layout.rows * (layout.height + layout.caption + 2 * GAP)
    return width, height


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    _, top, _, bottom = font.getbbox("Ágjy|")
    return ceil(bottom - min(top, 0)) + 2
