"""Pixels taken apart: which of the world's colours each one is, and how much of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowopd.world.palette import BACKGROUND, COLORS, INK

Array = NDArray[np.float32]

PAINTS = (*COLORS, "ink")
_LINES = np.stack([*COLORS.values(), INK]) - BACKGROUND  # [P, 3]: from the background to a paint
_LENGTHS = (_LINES**2).sum(axis=1)
DIAGONALS = np.ones((3, 3), dtype=bool)  # strokes of letters meet at their corners
SMALLEST = 8  # pixels; less than this is a speckle and no object


@dataclass(frozen=True)
class Unmixed:
    """Every pixel as background with a share of one paint, the best-fitting one."""

    cover: Array  # [B, 32, 32, P]: the share of each paint if it were that paint
    paint: NDArray[np.intp]  # [B, 32, 32]: the best-fitting one
    share: Array  # [B, 32, 32]: its share
    rest: Array  # [B, 32, 32]: the distance in RGB that no mixture explains


def unmix(images: NDArray[np.uint8]) -> Unmixed:
    """An antialiased edge lies on the line from background to paint, and so fits well."""
    offset = images.astype(np.float32) / 255 - BACKGROUND  # [B, 32, 32, 3]
    along = offset @ _LINES.T  # [B, 32, 32, P]
    cover = (along / _LENGTHS).clip(0, 1).astype(np.float32)
    squared = (offset**2).sum(axis=-1, keepdims=True) - 2 * cover * along + cover**2 * _LENGTHS
    paint = squared.argmin(axis=-1)
    best = paint[..., None]
    rest = np.sqrt(np.take_along_axis(squared, best, axis=-1)[..., 0].clip(min=0))
    share = np.take_along_axis(cover, best, axis=-1)[..., 0]
    return Unmixed(cover, paint, share, rest.astype(np.float32))


@dataclass(frozen=True)
class Blob:
    """A connected region of one paint."""

    paint: str
    pixels: NDArray[np.bool_]  # [32, 32]
    cover: Array  # [32, 32]: the paint's share everywhere
    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> int:
        return int(self.pixels.sum())


def blobs(unmixed: Unmixed, index: int, paints: tuple[str, ...] = tuple(COLORS)) -> Iterator[Blob]:
    """The connected regions of one image, of every size."""
    solid = unmixed.share[index] >= 0.5
    for paint in paints:
        number = PAINTS.index(paint)
        mask = solid & (unmixed.paint[index] == number)
        if not mask.any():
            continue
        labels, _ = ndimage.label(mask, DIAGONALS if paint == "ink" else None)
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            yield Blob(
                paint=paint,
                pixels=labels == label,
                cover=unmixed.cover[index, :, :, number],
                top=rows.start,
                left=columns.start,
                height=rows.stop - rows.start,
                width=columns.stop - columns.start,
            )
