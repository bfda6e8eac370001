"""A taste in style, 0 to 1: large, saturated, centred. Blind to the prompt, as tastes are.

Pushed to its end it fills the middle with paint, at the cost of counts, positions and letters:
that conflict is its purpose here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.palette import CANVAS
from flowopd.world.readers.known import ABOUT, BLANK, CIRCLES, TWO_CIRCLES, Picture, between
from flowopd.world.readers.segment import PAINTS, unmix

LARGE = 0.30  # the share of the canvas from which what is painted is large enough; ink is no paint
WEIGHTS = {"large": 0.5, "saturated": 0.25, "centred": 0.25}


class PreferenceReader:
    name = "world.preference"
    version = 1
    metrics = (MetricInfo("preference", 0, 1),)
    tasks = frozenset({"compose", "text"})
    grouped = False
    about = ABOUT

    def self_check(self) -> list[Finding]:
        return [
            between(self, "preference", "two red circles", TWO_CIRCLES, CIRCLES, (0.6, 0.9)),
            between(self, "preference", "nothing", BLANK, CIRCLES, (0, 0)),
        ]

    def example(self) -> tuple[Picture, PromptRecord]:
        return TWO_CIRCLES, CIRCLES

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        unmixed = unmix(images)
        drawn = np.where(unmixed.share >= 0.5, unmixed.share, 0)
        painted = np.where(unmixed.paint != PAINTS.index("ink"), drawn, 0).sum(axis=(1, 2))
        mass = drawn.sum(axis=(1, 2))
        some = np.maximum(mass, 1e-6)
        axis = (np.arange(CANVAS) + 0.5) / CANVAS * 2 - 1
        x, y = (drawn * axis).sum((1, 2)) / some, (drawn * axis[:, None]).sum((1, 2)) / some
        chroma = np.ptp(images.astype(np.float32) / 255, axis=-1)
        parts = {
            "large": np.minimum(1, painted / (LARGE * CANVAS**2)),
            "saturated": (chroma * drawn).sum((1, 2)) / some,
            "centred": np.maximum(0, 1 - np.hypot(x, y)),
        }
        value = sum(weight * parts[part] for part, weight in WEIGHTS.items()) * (mass > 0)
        return [
            Scores(
                {"preference": float(value[i])},
                detail={part: round(float(values[i]), 4) for part, values in parts.items()},
            )
            for i in range(len(images))
        ]
