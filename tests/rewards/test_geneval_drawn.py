"""GenEval's self-check: it passes for a detector that sees, and fails for one that errs."""

from typing import Any

import pytest

from flowopd.rewards.composition import Box
from flowopd.rewards.geneval import drawn
from flowopd.rewards.geneval.detections import Detection
from flowopd.rewards.geneval.scorer import GenEval
from flowopd.rewards.scorer import Scores

PLACE = Box(136, 96, 376, 336)
Seen = dict[str, list[Detection] | None]


def there(**scores: float) -> list[Detection]:
    """What is seen in the place of a drawing, as `stop_sign=0.8`."""
    return [Detection(name.replace("_", " "), score, PLACE) for name, score in scores.items()]


class Knowing(GenEval):
    """With a detector that sees what it is told to, and a classifier of colours that is right."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def make_detector(self) -> Any:
        names = {drawn.picture(draw).tobytes(): name for name, draw in drawn.DRAWINGS.items()}
        return lambda images: [
            self.seen.get(names.get(image.tobytes(), "nothing"), []) for image in images
        ]

    def make_classifier(self) -> Any:
        paints = [(216, 24, 24), (18, 150, 44), (20, 56, 210), (245, 220, 20)]
        names = ["red", "green", "blue", "yellow"]
        return lambda crops, _: [names[paints.index(one.getpixel((100, 100)))] for one in crops]


def everywhere(found: list[Detection]) -> Seen:
    return dict.fromkeys([*drawn.DRAWINGS, "nothing"], found)


TWO_OF_THREE: Seen = {
    "stop sign": there(stop_sign=0.8),
    "clock": there(apple=0.9),
    "traffic light": there(traffic_light=0.5),
}


def test_the_self_check_is_content_with_parts_that_see() -> None:
    findings = Knowing(TWO_OF_THREE).self_check()
    assert [one.good for one in findings] == [True] * 5
    assert [one.value for one in findings] == [2, 1, 0, 0, 4]
    assert findings[1].what == "geneval of a drawn stop sign"  # the surest
    images, asked = Knowing(TWO_OF_THREE).example()
    assert images.shape == (512, 512, 3)
    Knowing(TWO_OF_THREE).check(asked)


@pytest.mark.parametrize(
    ("seen", "known"),
    [
        ({"clock": there(clock=0.31)}, ["clock"]),
        ({"clock": there(clock=0.9, stop_sign=0.7, apple=0.99)}, ["clock"]),
        ({"stop sign": None, "clock": there(clock=0.9, traffic_light=0.2)}, ["clock"]),
        (
            {"stop sign": there(clock=0.5), "clock": there(clock=0.7), "traffic light": []},
            ["clock"],
        ),
        (
            {
                "stop sign": there(stop_sign=0.5),
                "clock": there(clock=0.9),
                "traffic light": there(traffic_light=0.7),
            },
            ["clock", "traffic light", "stop sign"],
        ),
        # Seen on every picture, surely or not; and as each other.
        (everywhere(there(stop_sign=0.8, clock=0.8, traffic_light=0.8, apple=0.8, bear=0.8)), []),
        (everywhere(there(stop_sign=0.9, clock=0.7, traffic_light=0.5)), []),
        (everywhere(there(clock=0.9)), []),
        ({"stop sign": there(clock=0.9), "clock": there(stop_sign=0.9)}, []),
        ({"clock": there(clock=0.9, stop_sign=0.85)}, []),
        ({"clock": there(clock=0.3)}, []),
        ({"clock": [Detection("clock", 0.9, Box(0, 0, 90, 90))]}, []),
        ({}, []),
    ],
)
def test_drawings_are_known_when_they_are_not_taken_for_each_other(
    seen: Seen, known: list[str]
) -> None:
    scorer = Knowing(seen)
    assert drawn.known(scorer.make_detector()) == known
    first, *_ = scorer.self_check()
    assert (first.value, first.good) == (len(known), bool(known))


@pytest.mark.parametrize(
    ("scores", "goods"),
    [
        ((1.0, 0.0), [True, True]),
        ((1.0, 1.0), [True, False]),
        ((0.0, 0.0), [False, True]),
        ((0.0, 1.0), [False, False]),
        ((None, 0.0), [False, True]),
    ],
)
def test_the_self_check_knows_what_it_has_to_score(
    scores: tuple[float | None, float], goods: list[bool]
) -> None:
    class Broken(Knowing):
        def score(self, images: Any, records: Any) -> list[Scores]:
            assert [one.meta["include"][0]["class"] for one in records] == ["stop sign", "zebra"]
            for one in records:
                self.check(one)
            return [Scores({"geneval": value}) for value in scores]

    _, right, wrong, *_ = Broken(TWO_OF_THREE).self_check()
    assert [right.value, wrong.value] == list(scores)
    assert [right.good, wrong.good] == goods
