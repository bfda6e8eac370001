"""Pictures of known content, by which the readers check themselves."""

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards.scorer import About, Finding, Scorer
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.render import Thing, Word, draw, to_uint8

Picture = NDArray[np.uint8]

ABOUT = About(
    licence="Apache-2.0 (this package)", cost="1 to 3 ms a picture on one core; no weights"
)
CIRCLES = PromptRecord(
    "two red circles",
    "compose",
    "counting",
    {"include": [{"class": "circle", "count": 2, "color": "red"}]},
)
HAT = PromptRecord('the word "HAT"', "text", "", {"target": "HAT"})

TWO_CIRCLES = to_uint8(draw([Thing("circle", "red", 6, 8, 8), Thing("circle", "red", 6, 24, 20)]))
ONE_CIRCLE = to_uint8(draw([Thing("circle", "red", 6, 16, 16)]))
HAT_WRITTEN = to_uint8(draw(words=[Word("HAT", 1, 0)]))
HUT_WRITTEN = to_uint8(draw(words=[Word("HUT", 1, 0)]))
BLANK = to_uint8(draw())


def speckled(picture: Picture) -> Picture:
    """The picture under noise, always the same."""
    noise = np.random.default_rng(0).normal(0, 40, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def between(
    scorer: Scorer,
    metric: str,
    what: str,
    picture: Picture,
    record: PromptRecord,
    bounds: tuple[float, float],
) -> Finding:
    """Whether the metric of a picture is within bounds."""
    value = scorer.score(picture[None], [record])[0].values[metric]
    low, high = bounds
    expected = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return Finding(what, value, expected, value is not None and low <= value <= high)
