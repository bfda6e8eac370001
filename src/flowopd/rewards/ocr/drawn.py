"""A picture with a known text, for the self-check."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 512
PAPER, INK = (222, 230, 240), (20, 30, 90)


def drawn_text(text: str) -> NDArray[np.uint8]:
    """The text in Pillow's own font in the middle of a picture [512, 512, 3]."""
    picture = Image.new("RGB", (SIDE, SIDE), PAPER)
    middle = (SIDE / 2, SIDE / 2)
    font = ImageFont.load_default(44)
    ImageDraw.Draw(picture).text(middle, text, fill=INK, font=font, anchor="mm")
    return np.asarray(picture, dtype=np.uint8)
