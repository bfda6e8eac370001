"""Pictures and prompts for scorers of pairs, and what any such scorer has to do with them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from flowopd.rewards.scorer import Scorer
from flowopd.tasks.prompts import PromptRecord

PROMPTS = (
    "a red square",
    "a photo of a dog",
    "",
    "a red square",
    "red " * 100 + "dog",
    "and of a red dog",
    "very red",
)


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blotches of colour: [count, height, width, 3]."""
    noise = np.random.default_rng(seed).random((count, height, width, 3))
    smooth = gaussian_filter(noise, (0, height / 16, width / 16, 0))
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return (255 * (smooth - low) / (high - low)).astype(np.uint8)


def values(scorer: Scorer, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[float]:
    (info,) = scorer.metrics
    found = [
        score.values[info.name]
        for score in scorer.score(images, [PromptRecord(prompt) for prompt in prompts])
    ]
    assert None not in found
    return [value for value in found if value is not None]


def spread(numbers: Sequence[float]) -> float:
    return max(numbers) - min(numbers)


def assert_one_by_one(scorer: Scorer, tolerance: float) -> list[float]:
    """Each pair has its own score, whatever its neighbours and its place among them."""
    images = pictures(len(PROMPTS))
    together = values(scorer, images, PROMPTS)
    assert spread(together) > 100 * tolerance

    alone = [values(scorer, images[i : i + 1], [prompt])[0] for i, prompt in enumerate(PROMPTS)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)

    order = np.random.default_rng(1).permutation(len(PROMPTS))
    shuffled = values(scorer, images[order], [PROMPTS[i] for i in order])
    np.testing.assert_allclose(shuffled, np.array(together)[order], rtol=0, atol=tolerance)
    return together
