"""Legible text: ink matched to glyphs cell by cell, scored by edit distance as OCR rewards are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.palette import CANVAS, CELL, GLYPHS
from flowopd.world.readers.segment import PAINTS, Unmixed, unmix

ROOM = CANVAS // CELL
FAINTEST = 4  # pixels of ink; a cell with less is empty
FARTHEST = 5  # pixels that may be wrong in a letter
UNKNOWN = "?"
_LETTERS = tuple(GLYPHS)
BITMAPS = np.stack([GLYPHS[letter].reshape(-1) for letter in _LETTERS])  # [12, 64]


def cells(unmixed: Unmixed) -> NDArray[np.float32]:
    """The share of ink, cell by cell: [B, 16, 64]."""
    is_ink = unmixed.paint == PAINTS.index("ink")
    ink = np.where(is_ink, unmixed.share, np.float32(0))
    split = ink.reshape(len(ink), ROOM, CELL, ROOM, CELL).transpose(0, 1, 3, 2, 4)
    return split.reshape(len(ink), ROOM**2, CELL**2)


def distances(ink_cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Wrong pixels of every cell [..., 64] against every letter: [..., 12]."""
    solid = (ink_cells >= 0.5).astype(np.float32)
    wrong = solid.sum(-1)[..., None] + BITMAPS.sum(-1) - 2 * solid @ BITMAPS.T
    return wrong.astype(np.float32)


def read(unmixed: Unmixed) -> list[str]:
    """The letters of every image from left to right and top to bottom; '?' for what is none."""
    ink_cells = cells(unmixed)
    wrong = distances(ink_cells)
    inked = (ink_cells >= 0.5).sum(-1) >= FAINTEST
    nearest, distance = wrong.argmin(-1), wrong.min(-1)
    return [
        "".join(
            _LETTERS[nearest[b, c]] if distance[b, c] <= FARTHEST else UNKNOWN
            for c in np.flatnonzero(inked[b])
        )
        for b in range(len(ink_cells))
    ]


def edit_score(seen: str, target: str) -> float:
    """1 - d / len(target), d at most len(target); a target that is contained is right."""
    if target in seen:
        return 1.0
    return 1 - min(Levenshtein.distance(seen, target), len(target)) / len(target)


class TextReader:
    """`text` is 1 when exactly the word is there and nothing else; `text_soft` is for training."""

    name = "world.text"
    metrics = (MetricInfo("text", 0, 1), MetricInfo("text_soft", 0, 1))
    tasks = frozenset({"text"})
    grouped = False

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        return [
            self._one(seen, str(record.meta["target"]))
            for seen, record in zip(read(unmix(images)), records, strict=True)
        ]

    def _one(self, seen: str, target: str) -> Scores:
        exact, soft = float(seen == target), edit_score(seen, target)
        return Scores({"text": exact, "text_soft": soft}, detail={"read": seen})
