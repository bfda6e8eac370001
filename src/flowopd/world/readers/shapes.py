"""Which shape a region is: the best overlap with a table of ideal ones of its size."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from flowopd.world.palette import CANVAS, SHAPES, coverage
from flowopd.world.readers.segment import Array, Blob

SIDES = range(4, 21)
LOPSIDED = 2  # pixels by which an object's width and height may differ
FIT = 0.75  # the overlap from which a region counts as the shape


@dataclass(frozen=True)
class Fit:
    shape: str
    overlap: float


@dataclass(frozen=True)
class Template:
    shape: str
    cover: Array  # with a border of one pixel around its solid part


@cache
def templates() -> dict[tuple[int, int], tuple[tuple[str, ...], Array]]:
    """By height and width of the solid part: the names and covers of what can look like that."""
    table: dict[tuple[int, int], list[Template]] = {}
    for shape in SHAPES:
        for height in SIDES:
            for width in SIDES:
                if abs(height - width) > LOPSIDED:
                    continue
                cover = np.pad(coverage(shape, height, width), 2)
                rows = np.flatnonzero((cover >= 0.5).any(axis=1))
                columns = np.flatnonzero((cover >= 0.5).any(axis=0))
                solid = cover[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]
                key = (int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1))
                table.setdefault(key, []).append(Template(shape, solid))
    return {
        key: (tuple(t.shape for t in found), np.stack([t.cover for t in found]))
        for key, found in table.items()
    }


def _crop(image: Array, blob: Blob) -> Array:
    """The blob's box and a border of one pixel, zero beyond the canvas."""
    crop = np.zeros((blob.height + 2, blob.width + 2), dtype=np.float32)
    top, left = blob.top - 1, blob.left - 1
    rows = slice(max(top, 0), min(top + blob.height + 2, CANVAS))
    columns = slice(max(left, 0), min(left + blob.width + 2, CANVAS))
    crop[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[
        rows, columns
    ]
    return crop


def best_fit(blob: Blob, others: NDArray[np.bool_]) -> Fit | None:
    """The shape with the largest overlap (soft intersection over union); None: no size fits.

    `others`: the pixels of the image that belong to other regions.
    """
    entry = templates().get((blob.height, blob.width))
    if entry is None:
        return None
    names, covers = entry
    cover = _crop(np.where(others, np.float32(0), blob.cover), blob)
    shared = np.minimum(covers, cover).sum(axis=(1, 2))
    overlap = shared / (covers.sum(axis=(1, 2)) + cover.sum() - shared)
    best = int(overlap.argmax())
    return Fit(names[best], float(overlap[best]))
