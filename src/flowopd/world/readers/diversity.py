"""Diversity: how far apart the pictures are that different seeds give for one prompt.

An image's value is its mean distance to the other images of its prompt, where a distance is the
root mean square over a blurred picture (4 by 4 pixel means), so that where and how large things
are counts, and pixel noise does not.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.readers.known import ABOUT, BLANK, ONE_CIRCLE, Picture

BLUR = 4


def blurred(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[B, 192]: the means of the picture's 8 by 8 blocks."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // BLUR, BLUR, width // BLUR, BLUR, channels)
    return (blocks.mean(axis=(2, 4)) / 255).reshape(count, -1).astype(np.float32)


def mean_distances(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row's mean distance to the other rows (root mean square over the columns)."""
    offsets = features[:, None] - features[None]
    distance = np.sqrt((offsets**2).mean(-1))
    return (distance.sum(1) / (len(features) - 1)).astype(np.float32)


class DiversityReader:
    name = "world.diversity"
    version = 1
    metrics = (MetricInfo("diversity", 0, 1),)
    tasks = frozenset({"diversity"})
    grouped = True
    about = ABOUT

    def self_check(self) -> list[Finding]:
        record = PromptRecord("a circle", "diversity")
        same, other = (
            self.score(np.stack([ONE_CIRCLE, second]), [record] * 2)[0].values["diversity"]
            for second in (ONE_CIRCLE, BLANK)
        )
        return [
            Finding("twice the same picture", same, "0", same == 0),
            Finding("a circle and nothing", other, "> 0.05", other is not None and other > 0.05),
        ]

    def example(self) -> tuple[Picture, PromptRecord]:
        return ONE_CIRCLE, PromptRecord("a circle", "diversity")

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        groups: dict[str, list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            groups[record.prompt].append(index)
        features = blurred(images)
        alone = Scores({"diversity": None}, {"diversity": "the only image of its prompt"})
        scores = [alone] * len(images)
        for members in groups.values():
            if len(members) < 2:
                continue
            for index, value in zip(members, mean_distances(features[members]), strict=True):
                scores[index] = Scores({"diversity": float(value)})
        return scores
