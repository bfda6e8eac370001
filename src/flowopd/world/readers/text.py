"""Legible text: ink matched to glyphs cell by cell, scored by edit distance as OCR rewards are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.palette import CANVAS, CELL, GLYPHS
from flowopd.world.readers.known import ABOUT, HAT, HAT_WRITTEN, HUT_WRITTEN, Picture, between
from flowopd.world.readers.segment import PAINTS, Unmixed, unmix

ROOM = CANVAS // CELL
FAINTEST = 4  # pixels of ink; a cell with less is empty
FARTHEST = 5  # pixels that may be wrong in a letter
MARGIN = 2  # pixels by which the nearest letter must be nearer than the next
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


def letters(ink_cells: NDArray[np.float32]) -> list[str]:
    """A letter for every cell [..., 64]: '' without ink, '?' when no letter is clearly nearest."""
    wrong = distances(ink_cells)
    nearest = wrong.argmin(-1)
    first, second = np.sort(wrong, axis=-1)[..., :2].T
    clear = (first <= FARTHEST) & (second - first >= MARGIN)
    inked = (ink_cells >= 0.5).sum(-1) >= FAINTEST
    named = [_LETTERS[n] if sure else UNKNOWN for n, sure in zip(nearest, clear, strict=True)]
    return [name if ink else "" for name, ink in zip(named, inked, strict=True)]


def read(unmixed: Unmixed) -> list[str]:
    """The words of every image from left to right and top to bottom, spaces between them.

    Letters in neighbouring cells of a row are a word.
    """
    texts = []
    for ink_cells in cells(unmixed):
        found = letters(ink_cells)
        rows = [found[start : start + ROOM] for start in range(0, ROOM**2, ROOM)]
        texts.append(" ".join("".join(cell or " " for cell in row) for row in rows))
    return [" ".join(text.split()) for text in texts]


def edit_score(seen: str, target: str) -> float:
    """1 - d / len(target), d at most len(target); a target that is contained is right.

    As OCR rewards do, it disregards spaces.
    """
    seen = seen.replace(" ", "")
    if target in seen:
        return 1.0
    return 1 - min(Levenshtein.distance(seen, target), len(target)) / len(target)


class TextReader:
    """`text` is 1 when exactly the word is there and nothing else; `text_soft` is for training."""

    name = "world.text"
    version = 1
    metrics = (MetricInfo("text", 0, 1), MetricInfo("text_soft", 0, 1))
    tasks = frozenset({"text"})
    grouped = False
    about = ABOUT

    def self_check(self) -> list[Finding]:
        right, wrong = (HAT_WRITTEN, HAT, (1, 1)), (HUT_WRITTEN, HAT, (0.6, 0.7))
        return [
            between(self, "text_soft", "the word that is asked for", *right),
            between(self, "text_soft", "the word with one letter wrong", *wrong),
        ]

    def example(self) -> tuple[Picture, PromptRecord]:
        return HAT_WRITTEN, HAT

    def check(self, record: PromptRecord) -> None:
        if not isinstance(record.meta.get("target"), str) or not record.meta["target"]:
            raise FlowOPDError("it has no 'target', the word that should be there.")

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        return [
            self._one(seen, record.meta["target"].upper())
            for seen, record in zip(read(unmix(images)), records, strict=True)
        ]

    def _one(self, seen: str, target: str) -> Scores:
        exact, soft = float(seen == target), edit_score(seen, target)
        return Scores({"text": exact, "text_soft": soft}, detail={"read": seen})
