"""How little room a picture takes as a JPEG: the reward for smoke tests, without any model."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowopd.rewards.drawn import BLUE_CIRCLE, draw, noise, read, within
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

QUALITY = 95
KILOBYTE = 1000
SCALE = 500  # kilobytes


class JpegScorer:
    """`-kB / 500` of the picture as JPEG of quality 95."""

    name = "jpeg"
    version = 1
    metrics: tuple[MetricInfo, ...] = (MetricInfo("jpeg", None, 0.0),)
    tasks: frozenset[str] | None = None
    grouped = False
    about = About(licence="Apache-2.0 (this package)", cost="about 5 ms a picture of 512×512")

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        return [Scores({"jpeg": -_bytes(image) / KILOBYTE / SCALE}) for image in images]

    def self_check(self) -> list[Finding]:
        plain, noisy = read(self, [draw(BLUE_CIRCLE), noise()], ["", ""])
        return [
            within("a drawing", plain, -0.1, 0),
            within("noise", noisy, -2, -0.5),
        ]


def _bytes(image: NDArray[np.uint8]) -> int:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
