"""Composition: coloured shapes found by segmentation, judged by GenEval's rules."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards.composition import Box, Found, check_requirement, judge
from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.readers.known import ABOUT, CIRCLES, ONE_CIRCLE, TWO_CIRCLES, Picture, between
from flowopd.world.readers.segment import SMALLEST, Blob, Unmixed, blobs, unmix
from flowopd.world.readers.shapes import FIT, Fit, best_fit


def fitted(unmixed: Unmixed, index: int) -> list[tuple[Blob, Fit | None]]:
    """Every region of an image that is large enough to be an object, with its shape."""
    solid = unmixed.share[index] >= 0.5
    regions = [blob for blob in blobs(unmixed, index) if blob.area >= SMALLEST]
    return [(blob, best_fit(blob, solid & ~blob.pixels)) for blob in regions]


def find(unmixed: Unmixed, index: int) -> list[Found]:
    """The objects of one image, the best-fitting first."""
    sure = [(b, fit) for b, fit in fitted(unmixed, index) if fit and fit.overlap >= FIT]
    return [
        Found(
            fit.shape,
            Box(blob.left, blob.top, blob.left + blob.width, blob.top + blob.height),
            blob.paint,
        )
        for blob, fit in sorted(sure, key=lambda pair: -pair[1].overlap)
    ]


class ComposeReader:
    """`compose` is the strict rule, 0 or 1; `compose_soft` the partial credit for training.

    As with GenEval, what is none of the shapes does not count, for or against; that is for the
    quality reader to see.
    """

    name = "world.compose"
    version = 1
    metrics = (
        MetricInfo("compose", 0, 1, strata=True),
        MetricInfo("compose_soft", 0, 1, strata=True),
    )
    tasks = frozenset({"compose"})
    grouped = False
    about = ABOUT

    def self_check(self) -> list[Finding]:
        right, wrong = (TWO_CIRCLES, CIRCLES, (1, 1)), (ONE_CIRCLE, CIRCLES, (0, 0))
        return [
            between(self, "compose", "two red circles, which are asked for", *right),
            between(self, "compose", "one red circle, of the two asked for", *wrong),
        ]

    def example(self) -> tuple[Picture, PromptRecord]:
        return TWO_CIRCLES, CIRCLES

    def check(self, record: PromptRecord) -> None:
        check_requirement(record.meta)

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        unmixed = unmix(images)
        return [self._one(find(unmixed, i), record) for i, record in enumerate(records)]

    def _one(self, found: list[Found], record: PromptRecord) -> Scores:
        verdict = judge(found, record.meta)
        return Scores(
            values={"compose": float(verdict.strict), "compose_soft": verdict.soft},
            detail={
                "found": [f"{thing.color} {thing.name}" for thing in found],
                "wrong": list(verdict.reasons),
            },
        )
