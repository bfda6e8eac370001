"""Which detections count, and what is cut out of the picture to look at an object's colour.

Boxes and masks are in pixels of the picture; a box ends after its last pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowopd.rewards.composition import Box

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST = 16  # detections of a class that are looked at
BACKGROUND = "#999999"

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Detection:
    """An object that a detector saw; ``mask`` [H, W] is None if the detector gives boxes only."""

    name: str
    score: float
    box: Box
    mask: Mask | None = None


def box_of(mask: Mask) -> Box:
    """The smallest box around what is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """Those above the tag's threshold by class, the surest first, at most 16 of each.

    Scores are compared in float32, as a network gives them. Of equal scores the box that begins
    further left and then higher comes first, so that their order does not matter.
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    by_class: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=_order):
        group = by_class.setdefault(one.name, [])
        if np.float32(one.score) > threshold and len(group) < MOST:
            group.append(one)
    return {name: group for name, group in by_class.items() if group}


def crop(image: NDArray[np.uint8], detection: Detection) -> Image.Image:
    """The box of an object in a picture [H, W, 3]; grey wherever the object is not."""
    picture = Image.fromarray(image)
    if detection.mask is not None:
        blank = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(detection.mask))
    box = detection.box
    left, top = round(box.left), round(box.top)
    return picture.crop(
        (left, top, max(round(box.right), left + 1), max(round(box.bottom), top + 1))
    )


def _order(one: Detection) -> tuple[float, ...]:
    return (-one.score, one.box.left, one.box.top, one.box.right, one.box.bottom)
