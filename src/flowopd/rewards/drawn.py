"""Drawn pictures of known content, and what a scorer of pictures and prompts makes of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flowopd.rewards.scorer import Finding, Scorer
from flowopd.tasks.prompts import PromptRecord

SIZE = 512
ALIKE = 1e-3
"""The share of its range by which a score may change with the batch that it is in."""


class Drawing(NamedTuple):
    """A shape on white."""

    shape: str
    colour: str

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.shape}"


RED_SQUARE, BLUE_CIRCLE = Drawing("square", "red"), Drawing("circle", "blue")
ELSE = "a photo of a dog"


def draw(drawing: Drawing, size: int = SIZE) -> NDArray[np.uint8]:
    """The shape, half as wide as the picture, in its middle: [size, size, 3]."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    place = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
    (pen.rectangle if drawing.shape == "square" else pen.ellipse)(place, fill=drawing.colour)
    return np.asarray(picture)


def noise(size: int = SIZE) -> NDArray[np.uint8]:
    """Pixels of random colours, always the same ones."""
    return np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)


def read(
    scorer: Scorer, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> list[float]:
    """The scorer's one number for each; NaN where it gives none."""
    (info,) = scorer.metrics
    scores = scorer.score(np.stack(images), [PromptRecord(prompt) for prompt in prompts])
    values = [score.values[info.name] for score in scores]
    return [float("nan") if value is None else value for value in values]


def check_pairs(scorer: Scorer, low: float, high: float) -> list[Finding]:
    """Whether drawings score higher by what they show than by something else.

    `low` and `high`: where the score of a drawing by its own prompt can be expected.
    """
    drawings = (RED_SQUARE, BLUE_CIRCLE)
    pictures = [draw(drawing) for drawing in drawings]
    own, other = [d.prompt for d in drawings], [d.prompt for d in reversed(drawings)]
    values = read(scorer, pictures * 3, [*own, *other, ELSE, ELSE])
    fits, swapped, elsewhere = (float(np.mean(values[i : i + 2])) for i in (0, 2, 4))
    names = " and ".join(repr(prompt) for prompt in own)
    return [
        within(f"drawings of {names}, by these prompts", fits, low, high),
        _more("the same, by each other's prompt: how much less", fits - swapped),
        _more(f"the same, by {ELSE!r}: how much less", fits - elsewhere),
        check_alone(scorer, pictures[1], own[1], values[1], high - low),
    ]


def check_alone(
    scorer: Scorer, picture: NDArray[np.uint8], prompt: str, in_batch: float, span: float
) -> Finding:
    """Whether a picture scores alone what it scored among others."""
    (alone,) = read(scorer, [picture], [prompt])
    change = abs(alone - in_batch)
    limit = ALIKE * span
    what = "a picture alone and among others: how far apart"
    return Finding(what, _known(change), f"< {limit:g}", change < limit)


def within(what: str, value: float, low: float, high: float) -> Finding:
    """Whether a value is in its range."""
    return Finding(what, _known(value), f"{low:g} to {high:g}", low <= value <= high)


def _more(what: str, value: float) -> Finding:
    return Finding(what, _known(value), "> 0", value > 0)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
