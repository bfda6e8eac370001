"""GenEval's decisions on detections worked out by hand."""

import pytest

from flowopd.rewards.composition import Box, Found, judge, relations


def at(x: float, y: float, size: float = 2) -> Box:
    return Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def cat(x: float = 0, y: float = 0, color: str | None = None) -> Found:
    return Found("cat", at(x, y), color)


def dog(x: float = 0, y: float = 0, color: str | None = None) -> Found:
    return Found("dog", at(x, y), color)


ONE_CAT = {"include": [{"class": "cat", "count": 1}]}
TWO_CATS = {
    "include": [{"class": "cat", "count": 2}],
    "exclude": [{"class": "cat", "count": 3}],
}
RED_CAT = {"include": [{"class": "cat", "count": 1, "color": "red"}]}
RED_CAT_BLUE_DOG = {
    "include": [
        {"class": "cat", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    ]
}
DOG_LEFT_OF_CAT = {
    "include": [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    ]
}

BLUE_DOG_LEFT_OF_CAT = {
    "include": [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "color": "blue", "position": ["left of", 0]},
    ]
}


@pytest.mark.parametrize(
    ("requirement", "found", "correct", "strict", "soft"),
    [
        (ONE_CAT, [], 0, 0, 0.0),
        (ONE_CAT, [cat()], 1, 1, 1.0),
        (ONE_CAT, [dog()], 0, 0, 0.0),
        (ONE_CAT, [cat(), dog()], 1, 1, 1.0),
        # Two where one was asked for: GenEval is content, the strict rule is not.
        (ONE_CAT, [cat(), cat()], 1, 0, 0.0),
        (ONE_CAT, [cat()] * 5, 1, 0, 0.0),
        (TWO_CATS, [cat()], 0, 0, 0.5),
        (TWO_CATS, [cat()] * 2, 1, 1, 1.0),
        (TWO_CATS, [cat()] * 3, 0, 0, 0.5),
        (TWO_CATS, [cat()] * 4, 0, 0, 0.0),
        (RED_CAT, [cat(color="red")], 1, 1, 1.0),
        (RED_CAT, [cat(color="blue")], 0, 0, 0.5),
        # The surest is looked at, not the one that would fit.
        (RED_CAT, [cat(color="blue"), cat(color="red")], 0, 0, 0.0),
        (RED_CAT, [cat(color="red"), cat(color="blue")], 1, 0, 0.0),
        (RED_CAT_BLUE_DOG, [cat(color="red"), dog(color="blue")], 1, 1, 1.0),
        (RED_CAT_BLUE_DOG, [cat(color="blue"), dog(color="red")], 0, 0, 0.5),
        (RED_CAT_BLUE_DOG, [cat(color="red"), dog(color="red")], 0, 0, 0.75),
        (RED_CAT_BLUE_DOG, [cat(color="red")], 0, 0, 0.5),
        (DOG_LEFT_OF_CAT, [cat(10, 0), dog(0, 0)], 1, 1, 1.0),
        (DOG_LEFT_OF_CAT, [cat(0, 0), dog(10, 0)], 0, 0, 2 / 3),
        (DOG_LEFT_OF_CAT, [cat(0, 10), dog(0, 0)], 0, 0, 2 / 3),
        (DOG_LEFT_OF_CAT, [dog(0, 0)], 0, 0, 1 / 3),
        (DOG_LEFT_OF_CAT, [cat(0, 0)], 0, 0, 1 / 3),
        (DOG_LEFT_OF_CAT, [cat(10, 0), dog(0, 0), dog(2, 0)], 1, 0, 1 / 3),
        # The place is seen from a target that is itself wrong (two where one was asked for).
        (DOG_LEFT_OF_CAT, [cat(10, 0), cat(12, 0), dog(0, 0)], 1, 0, 1 / 3),
        (BLUE_DOG_LEFT_OF_CAT, [cat(10, 0), dog(0, 0, "blue")], 1, 1, 1.0),
        (BLUE_DOG_LEFT_OF_CAT, [cat(0, 0), dog(10, 0, "blue")], 0, 0, 3 / 4),
        (BLUE_DOG_LEFT_OF_CAT, [cat(10, 0), dog(0, 0, "red")], 0, 0, 2 / 3),
    ],
)
def test_judge(requirement, found, correct, strict, soft) -> None:
    verdict = judge(found, requirement)
    assert (verdict.correct, verdict.strict) == (bool(correct), bool(strict))
    assert verdict.soft == pytest.approx(soft)
    assert bool(verdict.reasons) != verdict.correct


@pytest.mark.parametrize(
    ("a", "names"),
    [
        (at(-10, 0), {"left of"}),
        (at(10, 0), {"right of"}),
        (at(0, -10), {"above"}),
        (at(0, 10), {"below"}),
        (at(10, 10), {"right of", "below"}),
        (at(-10, -4), {"left of"}),
        (at(0, 0), set()),
        # Both sizes are 2: 0.1 * (2 + 2) = 0.4 of an offset is free.
        (at(0.4, 0), set()),
        (at(0.79, 0), set()),  # (0.79 - 0.4) / 0.79 < 0.5
        (at(0.81, 0), {"right of"}),  # (0.81 - 0.4) / 0.81 > 0.5
    ],
)
def test_relations(a: Box, names: set[str]) -> None:
    assert relations(a, at(0, 0)) == names


def test_reasons_say_what_is_wrong() -> None:
    assert judge([cat()], TWO_CATS).reasons == ("expected cat at least 2 times, found 1",)
    assert judge([cat()] * 3, TWO_CATS).reasons == ("expected cat fewer than 3 times, found 3",)
    assert judge([cat(color="blue")], RED_CAT).reasons == ("expected 1 red cat, found 0",)
    assert judge([dog()], DOG_LEFT_OF_CAT).reasons == (
        "expected cat at least 1 times, found 0",
        "nothing for dog to be left of",
    )
