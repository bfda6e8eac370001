"""GenEval's decisions on what was found; test_geneval_decisions.py has many more."""

import pytest

from flowopd.rewards.composition import Box, Found, judge, relations


def at(x: float, y: float, size: float = 2) -> Box:
    return Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def cat(x: float = 0, y: float = 0, color: str | None = None) -> Found:
    return Found("cat", at(x, y), color)


def dog(x: float = 0, y: float = 0, color: str | None = None) -> Found:
    return Found("dog", at(x, y), color)


TWO_CATS = {
    "include": [{"class": "cat", "count": 2}],
    "exclude": [{"class": "cat", "count": 3}],
}
RED_CAT = {"include": [{"class": "cat", "count": 1, "color": "red"}]}
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
    ("found", "correct", "soft"),
    [
        ([cat(10, 0), dog(0, 0, "blue")], True, 1),
        ([cat(0, 0), dog(10, 0, "blue")], False, 3 / 4),
        # A place counts for nothing where the colour is wrong.
        ([cat(10, 0), dog(0, 0, "red")], False, 2 / 3),
        ([cat(0, 0), dog(10, 0, "red")], False, 2 / 3),
        ([cat(10, 0)], False, 1 / 3),
    ],
)
def test_a_color_and_a_place_of_one_thing(found: list[Found], correct: bool, soft: float) -> None:
    verdict = judge(found, BLUE_DOG_LEFT_OF_CAT)
    assert verdict.correct == verdict.strict == correct
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
