import time

import numpy as np
import pytest
from PIL import Image, ImageFont

from flowopd.errors import FlowOPDError
from flowopd.reporting.contact_sheet import (
    CAPTION_LINES,
    CELL,
    FONT_SIZE,
    FRAME,
    contact_sheet,
    wrap,
)


def test_small_pictures_are_enlarged_with_hard_pixels() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2] = (255, 0, 0)
    sheet = np.asarray(contact_sheet([Image.fromarray(pixels)], ["stripes"]))
    cell = sheet[12 : 12 + CELL, 12 : 12 + CELL]
    assert CELL % 32 == 0
    assert np.array_equal(cell, pixels.repeat(CELL // 32, 0).repeat(CELL // 32, 1))


def test_captions_are_drawn_below() -> None:
    black = Image.new("RGB", (32, 32))
    sheet = np.asarray(contact_sheet([black] * 2, ["a red circle", ""], columns=2))
    assert (sheet[12 + CELL, 12 : 12 + CELL] == FRAME).all()
    below = sheet[12 + CELL + 1 :]
    left, right = np.split(below, [12 + CELL + 6], axis=1)
    assert (left < 128).any()
    assert (right == 255).all()


def test_large_pictures_fit_and_the_grid_is_about_square() -> None:
    large = Image.new("RGB", (1024, 512))
    sheet = contact_sheet([large] * 7, ["x"] * 7)
    assert sheet.width == 12 + 3 * (CELL * 1.5 + 12)
    assert sheet.height < 3 * (CELL * 0.75 + 60) + 12


def test_long_captions_are_wrapped_and_cut() -> None:
    font = ImageFont.load_default(FONT_SIZE)
    lines = wrap("three small yellow triangles " * 10, font, CELL)
    assert len(lines) == CAPTION_LINES
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= CELL for line in lines)
    assert wrap("x" * 200, font, CELL)[0].endswith("…")
    assert wrap("a cup", font, CELL) == ["a cup"]
    assert wrap("", font, CELL) == [""]


def test_a_word_without_an_end_is_cut_soon() -> None:
    font = ImageFont.load_default(FONT_SIZE)
    begun = time.perf_counter()
    lines = wrap("three " + "x" * 8000 + " " + "W" * 8000 + " end", font, CELL)
    assert time.perf_counter() - begun < 2
    assert [line[0] for line in lines] == ["t", "x", "W"]
    assert all(font.getlength(line) <= CELL for line in lines)


@pytest.mark.parametrize("width", [0, 3, 14, 15, 40, 97, CELL])
def test_words_are_cut_where_a_letter_less_first_fits(width: int) -> None:
    font = ImageFont.load_default(FONT_SIZE)
    for word in ("AVAVATo.Ty.LTWAVA" * 4, "ffifflfi.i.l,," * 6, "jWi" * 20, "i"):
        text = line = word
        while line and font.getlength(text) > width:
            line = line[:-1]
            text = line + "…"
        assert wrap(word, font, width) == [text]


def test_wrong_input() -> None:
    with pytest.raises(FlowOPDError, match="at least one"):
        contact_sheet([], [])
    with pytest.raises(FlowOPDError, match="1 pictures have 2 captions"):
        contact_sheet([Image.new("RGB", (8, 8))], ["a", "b"])
