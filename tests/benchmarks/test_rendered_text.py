"""The rendered texts by which reading is measured."""

from pathlib import Path

import numpy as np
import pytest

import rendered_text
from flowopd.errors import FlowOPDError
from rendered_text import BUNDLED, ENDS, LARGEST, SIDE, WORDS, sign

IN_LIBERATION = 0
"""A text whose font is the system's."""


def test_a_sign_is_always_the_same() -> None:
    first, again = (sign(7, system_fonts=False) for _ in range(2))
    assert (first.image == again.image).all()
    assert first.text == again.text


def test_signs_differ_in_all_that_may_matter() -> None:
    shown = [sign(number, system_fonts=False) for number in range(60)]
    assert len({one.text for one in shown}) == 60
    assert {one.font for one in shown} == {name.removesuffix(".ttf") for name in BUNDLED}
    assert len({one.size for one in shown}) > 15
    assert max(one.size for one in shown) <= LARGEST
    kinds = " ".join(one.kind for one in shown)
    words = ("flat", "gradient", "speckled", "nothing", "shapes", "lines", "tilted")
    assert all(word in kinds for word in words)
    for one in shown:
        assert one.image.shape == (SIDE, SIDE, 3)
        assert one.image.dtype == np.uint8
        first = one.text.split()[0].strip("!?").lower()
        assert first in WORDS
        assert any(one.text.endswith(end) for end in ENDS)


def test_a_font_that_is_not_here_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered_text, "_installed", dict[str, Path])
    assert rendered_text.missing_fonts() == list(rendered_text.SYSTEM)
    wanted = r"font Liberation\S+ is not installed .*fonts-liberation"
    with pytest.raises(FlowOPDError, match=wanted):
        sign(IN_LIBERATION)
    assert sign(IN_LIBERATION, system_fonts=False).font == "DejaVuSans"
