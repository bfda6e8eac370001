"""The self-check of scorers of pairs: it passes for one that sees, and fails for one that errs."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flowopd.rewards.drawn import BLUE_CIRCLE, RED_SQUARE, check_pairs, draw
from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

Judge = Callable[[NDArray[np.uint8], str, int], float | None]


class Scorer:
    """By a function of a picture, its prompt, and how many there are in the call."""

    name, version, tasks, grouped = "made up", 1, None, False
    metrics = (MetricInfo("made up"),)

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        found = [
            self.judge(image, record.prompt, len(records))
            for image, record in zip(images, records, strict=True)
        ]
        return [Scores({"made up": value}) for value in found]


def sees(image: NDArray[np.uint8], prompt: str, count: int) -> float:
    middle = image[len(image) // 2, len(image) // 2]
    colour = "red" if middle[0] > middle[2] else "blue"
    return 0.8 if colour in prompt else 0.3 if "a" in prompt else 0.0


def goods(judge: Judge) -> list[bool]:
    return [finding.good for finding in check_pairs(Scorer(judge), 0.5, 1)]


def test_one_that_sees() -> None:
    findings = check_pairs(Scorer(sees), 0.5, 1)
    assert [finding.good for finding in findings] == [True] * 4
    assert [finding.value for finding in findings] == pytest.approx([0.8, 0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda image, prompt, count: 0.7, [True, False, False, True]),
        (lambda image, prompt, count: 100 * sees(image, prompt, 0), [False, True, True, True]),
        (lambda image, prompt, count: 0.9 - sees(image, prompt, 0), [False, False, False, True]),
        (lambda image, prompt, count: sees(image, prompt, 0) + count / 1000, [True] * 3 + [False]),
        (lambda image, prompt, count: None, [False] * 4),
    ],
    ids=["blind", "another scale", "turned round", "by the batch", "no numbers"],
)
def test_one_that_errs(judge: Judge, expected: list[bool]) -> None:
    assert goods(judge) == expected


def test_what_is_missing_has_no_value() -> None:
    findings = check_pairs(Scorer(lambda image, prompt, count: None), 0, 1)
    assert [finding.value for finding in findings] == [None] * 4


def test_the_drawings() -> None:
    square, circle = draw(RED_SQUARE, 64), draw(BLUE_CIRCLE, 64)
    assert square.shape == circle.shape == (64, 64, 3)
    red, blue = (square == [255, 0, 0]).all(-1), (circle == [0, 0, 255]).all(-1)
    assert red.mean() == pytest.approx(1 / 4, abs=0.03)
    assert blue.mean() == pytest.approx(np.pi / 16, abs=0.03)
    assert red[32, 32]
    assert blue[32, 32]
    assert (square[0, 0] == 255).all()
    assert RED_SQUARE.prompt == "a red square"
