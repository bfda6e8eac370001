"""Image quality, 1 to 5, without a reference: how far the pixels are from any clean rendering.

`1 + 4 exp(-damage)`. Damage adds up what no clean picture has: colours off the palette, haze
(partial cover where there is no edge to explain it), specks, and ragged outlines of shapes and
letters. A picture with nothing in it has no quality: it scores 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.readers.compose import fitted
from flowopd.world.readers.known import ABOUT, CIRCLES, TWO_CIRCLES, Picture, between, speckled
from flowopd.world.readers.segment import PAINTS, SMALLEST, Array, Blob, Unmixed, blobs, unmix
from flowopd.world.readers.text import BITMAPS, FAINTEST, cells, distances

OFF_PALETTE, HAZE, SPECKS, RAGGED = 12.0, 12.0, 0.25, 3.0  # what each part of the damage weighs
DROPPED = 0.06  # a share that 8-bit rounding and edges explain by themselves
CLEAN_FIT = 0.97  # the overlap of a clean shape with its template


def haze(share: Array) -> NDArray[np.float32]:
    """The mean partial cover of pixels that lie further than a pixel from an edge: [B]."""
    solid = share >= 0.5
    square = np.ones((1, 3, 3), dtype=bool)
    outside = ~ndimage.binary_dilation(solid, square)
    inside = ndimage.binary_erosion(solid, square, border_value=1)
    stain = np.where(outside, share, 0) + np.where(inside, 1 - share, 0)
    return np.where(stain > DROPPED, stain, 0).mean(axis=(1, 2)).astype(np.float32)


def raggedness(unmixed: Unmixed, index: int, ink_cells: Array) -> float:
    """How badly outlines fit shapes and letters, a mean over what is drawn: 0 to 1.

    `ink_cells` [16, 64] are the text reader's cells of this image.
    """
    overlaps = [fit.overlap if fit else 0.0 for _, fit in fitted(unmixed, index)]
    misfits = [max(0.0, CLEAN_FIT - overlap) for overlap in overlaps]
    inked = ink_cells[(ink_cells >= 0.5).sum(-1) >= FAINTEST]
    glyphs = BITMAPS[distances(inked).argmin(-1)]
    off = np.abs(inked - glyphs)
    strokes = np.where(off > DROPPED, off, 0).sum(-1) / glyphs.sum(-1)
    misfits += strokes.clip(max=1).tolist()
    return float(np.mean(misfits)) if misfits else 0.0


def smallest(blob: Blob) -> int:
    """The area under which a region is a speck: of ink, what is too little for a letter's part."""
    return FAINTEST if blob.paint == "ink" else SMALLEST


class QualityReader:
    """What DeQA is to real images: blind to the prompt, sensitive to damage."""

    name = "world.quality"
    version = 1
    metrics = (MetricInfo("quality", 1, 5),)
    tasks = frozenset({"compose", "text"})
    grouped = False
    about = ABOUT

    def self_check(self) -> list[Finding]:
        noisy = speckled(TWO_CIRCLES)
        return [
            between(self, "quality", "a clean picture", TWO_CIRCLES, CIRCLES, (4.8, 5)),
            between(self, "quality", "the same under noise", noisy, CIRCLES, (1, 3)),
        ]

    def example(self) -> tuple[Picture, PromptRecord]:
        return TWO_CIRCLES, CIRCLES

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        unmixed = unmix(images)
        off_palette = np.where(unmixed.rest > DROPPED, unmixed.rest, 0).mean(axis=(1, 2))
        stains = haze(unmixed.share)
        ink = cells(unmixed)
        scores = []
        for i in range(len(images)):
            is_speck = [blob.area < smallest(blob) for blob in blobs(unmixed, i, PAINTS)]
            parts = {
                "off_palette": OFF_PALETTE * float(off_palette[i]),
                "haze": HAZE * float(stains[i]),
                "specks": SPECKS * sum(is_speck),
                "ragged": RAGGED * raggedness(unmixed, i, ink[i]),
            }
            value = 1.0 if all(is_speck) else 1 + 4 * float(np.exp(-sum(parts.values())))
            scores.append(
                Scores({"quality": value}, detail={k: round(v, 4) for k, v in parts.items()})
            )
        return scores
