"""GenEval's decisions from detections, worked out by hand."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from flowopd.rewards.composition import Box, Found, Verdict, judge
from flowopd.rewards.geneval.decisions import to_color
from flowopd.rewards.geneval.detections import Detection, kept
from flowopd.rewards.geneval.names import COLORS, NAMES, TAGS

AT_THRESHOLD, ABOVE = (float(one) for one in (np.float32(0.3), np.nextafter(np.float32(0.3), 1)))
AT_COUNTING, ABOVE_COUNTING = (
    float(one) for one in (np.float32(0.9), np.nextafter(np.float32(0.9), 1))
)

Thing = tuple[Detection, str | None]


def thing(
    name: str, score: float = 0.95, x: float = 0, y: float = 0, color: str | None = None
) -> Thing:
    """An object of 20 by 20 pixels around a place."""
    return Detection(name, score, Box(x - 10, y - 10, x + 10, y + 10)), color


def cat(score: float = 0.95, x: float = 0, y: float = 0, color: str | None = None) -> Thing:
    return thing("cat", score, x, y, color)


def dog(score: float = 0.95, x: float = 0, y: float = 0, color: str | None = None) -> Thing:
    return thing("dog", score, x, y, color)


def red(score: float = 0.95, x: float = 0, y: float = 0) -> Thing:
    return cat(score, x, y, "red")


def blue(score: float = 0.95, x: float = 0, y: float = 0) -> Thing:
    return cat(score, x, y, "blue")


def verdict(things: list[Thing], tag: str, requirement: dict[str, Any]) -> Verdict:
    color_of = {id(one): color for one, color in things}
    by_class = kept([one for one, _ in things], tag)
    colored = to_color(by_class, requirement)
    found = [
        Found(name, one.box, color_of[id(one)] if place < colored.get(name, 0) else None)
        for name, group in by_class.items()
        for place, one in enumerate(group)
    ]
    return judge(found, requirement)


def ask(*include: dict[str, Any], exclude: tuple[tuple[str, int], ...] = ()) -> dict[str, Any]:
    banned = [{"class": name, "count": count} for name, count in exclude]
    return {"include": list(include), **({"exclude": banned} if banned else {})}


def a(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


CAT = ask(a("cat"))
CAT_AND_DOG = ask(a("cat"), a("dog"))
TWO_CATS = ask(a("cat", 2), exclude=(("cat", 3),))
THREE_CATS = ask(a("cat", 3), exclude=(("cat", 4),))
THREE_OR_MORE = ask(a("cat", 3))
CAT_WITHOUT_DOG = ask(a("cat"), exclude=(("dog", 1),))
CAT_WITHOUT_DOGS = ask(a("cat"), exclude=(("dog", 2),))
SIXTEEN = ask(a("cat", 16), exclude=(("cat", 17),))
RED_CAT = ask(a("cat", color="red"))
TWO_RED_CATS = ask(a("cat", 2, color="red"))
RED_CAT_BLUE_DOG = ask(a("cat", color="red"), a("dog", color="blue"))
LEFT = ask(a("cat"), a("dog", position=["left of", 0]))
RIGHT = ask(a("cat"), a("dog", position=["right of", 0]))
ABOVE_IT = ask(a("cat"), a("dog", position=["above", 0]))
BELOW = ask(a("cat"), a("dog", position=["below", 0]))
TWO_DOGS_LEFT = ask(a("cat"), a("dog", 2, position=["left of", 0]))
LEFT_OF_TWO = ask(a("cat", 2), a("dog", position=["left of", 0]))
CHAIN = ask(a("cat"), a("dog", position=["left of", 0]), a("bird", position=["above", 1]))

SINGLE = [
    (CAT, [], 0, 0, 0),
    (CAT, [cat()], 1, 1, 1),
    (CAT, [dog()], 0, 0, 0),
    (CAT, [cat(), dog()], 1, 1, 1),
    (CAT, [cat(AT_THRESHOLD)], 0, 0, 0),
    (CAT, [cat(ABOVE)], 1, 1, 1),
    (CAT, [cat(), cat(AT_THRESHOLD)], 1, 1, 1),
    (CAT, [cat(), cat(ABOVE)], 1, 0, 0),
    (CAT, [cat(), cat(x=100)], 1, 0, 0),
    (CAT, [cat(), cat()], 1, 0, 0),  # the same box twice: nothing is suppressed
    (CAT, [cat(x=i) for i in range(17)], 1, 0, 0),
]
TWO = [
    (CAT_AND_DOG, [cat(), dog()], 1, 1, 1),
    (CAT_AND_DOG, [cat()], 0, 0, 1 / 2),
    (CAT_AND_DOG, [dog()], 0, 0, 1 / 2),
    (CAT_AND_DOG, [], 0, 0, 0),
    (CAT_AND_DOG, [cat(), cat(x=50), dog()], 1, 0, 1 / 2),
    (CAT_AND_DOG, [cat(), cat(x=50), dog(), dog(x=50)], 1, 0, 0),
    (CAT_AND_DOG, [cat(), cat(x=50), cat(x=90), dog()], 1, 0, 1 / 2),  # 1 - 2, floored
    (CAT_AND_DOG, [cat(AT_THRESHOLD), dog()], 0, 0, 1 / 2),
    (CAT_AND_DOG, [cat(0.5), dog(0.5)], 1, 1, 1),  # one box, seen as either
    (CAT_AND_DOG, [cat(), dog(), thing("bench")], 1, 1, 1),
]
COUNTING = [
    (THREE_CATS, [cat(x=i) for i in range(3)], 1, 1, 1),
    (THREE_CATS, [cat(x=i) for i in range(2)], 0, 0, 2 / 3),
    (THREE_CATS, [cat()], 0, 0, 1 / 3),
    (THREE_CATS, [], 0, 0, 0),
    (THREE_CATS, [cat(x=i) for i in range(4)], 0, 0, 2 / 3),
    (THREE_CATS, [cat(x=i) for i in range(5)], 0, 0, 1 / 3),
    (THREE_CATS, [cat(x=i) for i in range(6)], 0, 0, 0),
    (THREE_CATS, [cat(x=i) for i in range(9)], 0, 0, 0),
    (THREE_CATS, [cat(), cat(), cat(), cat(AT_COUNTING)], 1, 1, 1),
    (THREE_CATS, [cat(), cat(), cat(), cat(ABOVE_COUNTING)], 0, 0, 2 / 3),
    (THREE_CATS, [cat(), cat(), cat(AT_COUNTING)], 0, 0, 2 / 3),
    (THREE_CATS, [cat(0.89)] * 3, 0, 0, 0),
    (THREE_CATS, [cat(), cat(), cat(), *[dog()] * 5], 1, 1, 1),
    (THREE_CATS, [cat(), cat(), dog()], 0, 0, 2 / 3),
    (TWO_CATS, [cat(), cat(x=5)], 1, 1, 1),
    (TWO_CATS, [cat(x=i) for i in range(3)], 0, 0, 1 / 2),
    (TWO_CATS, [cat(x=i) for i in range(4)], 0, 0, 0),
    (THREE_OR_MORE, [cat(x=i) for i in range(4)], 1, 0, 2 / 3),
    (CAT_WITHOUT_DOG, [cat()], 1, 1, 1),
    (CAT_WITHOUT_DOG, [cat(), dog()], 0, 0, 1),  # the soft score knows of no exclude
    (CAT_WITHOUT_DOG, [cat(), dog(AT_COUNTING)], 1, 1, 1),
    (CAT_WITHOUT_DOG, [dog()], 0, 0, 0),
    (CAT_WITHOUT_DOGS, [cat(), dog()], 1, 1, 1),
    (CAT_WITHOUT_DOGS, [cat(), dog(), dog(x=50)], 0, 0, 1),
    # No more than 16 of a class are looked at, so that a seventeenth is never one too many.
    (SIXTEEN, [cat(x=i) for i in range(20)], 1, 1, 1),
    (SIXTEEN, [cat(x=i) for i in range(15)], 0, 0, 15 / 16),
]
COLORED = [
    (RED_CAT, [red()], 1, 1, 1),
    (RED_CAT, [blue()], 0, 0, 1 / 2),
    (RED_CAT, [], 0, 0, 0),
    (RED_CAT, [dog(color="red")], 0, 0, 0),
    (RED_CAT, [red(AT_THRESHOLD)], 0, 0, 0),
    (RED_CAT, [red(), dog(color="blue")], 1, 1, 1),
    (RED_CAT, [red(), red(x=50)], 1, 0, 0),
    # The surest is looked at, whatever the others are.
    (RED_CAT, [red(0.9), blue(0.5)], 1, 0, 0),
    (RED_CAT, [red(0.5), blue(0.9)], 0, 0, 0),
    # Of equally sure ones, the one further left; of those, the higher one.
    (RED_CAT, [blue(0.9, x=1), red(0.9, x=0)], 1, 0, 0),
    (RED_CAT, [blue(0.9, x=0), red(0.9, x=1)], 0, 0, 0),
    (RED_CAT, [blue(0.9, y=1), red(0.9, y=0)], 1, 0, 0),
    (TWO_RED_CATS, [red(), red(x=50)], 1, 1, 1),
    (TWO_RED_CATS, [red(), blue(x=50)], 0, 0, 3 / 4),
    (TWO_RED_CATS, [blue(), blue(x=50)], 0, 0, 1 / 2),
    (TWO_RED_CATS, [red()], 0, 0, 1 / 4),
    (TWO_RED_CATS, [red(0.9), red(0.8), blue(0.7)], 1, 0, 1 / 4),
    (TWO_RED_CATS, [red(0.9), red(0.7), blue(0.8)], 0, 0, 1 / 4),
    (TWO_RED_CATS, [red(x=i) for i in range(5)], 1, 0, 0),
]
PLACED = [
    (LEFT, [cat(x=50), dog()], 1, 1, 1),
    (LEFT, [cat(), dog(x=50)], 0, 0, 2 / 3),
    (LEFT, [cat(y=50), dog()], 0, 0, 2 / 3),
    (LEFT, [dog()], 0, 0, 1 / 3),
    (LEFT, [cat()], 0, 0, 1 / 3),
    (LEFT, [], 0, 0, 0),
    (RIGHT, [cat(), dog(x=50)], 1, 1, 1),
    (RIGHT, [cat(x=50), dog()], 0, 0, 2 / 3),
    (ABOVE_IT, [cat(y=50), dog()], 1, 1, 1),
    (ABOVE_IT, [cat(), dog(y=50)], 0, 0, 2 / 3),
    (BELOW, [cat(), dog(y=50)], 1, 1, 1),
    (BELOW, [cat(y=50), dog()], 0, 0, 2 / 3),
    (LEFT, [cat(x=50), dog(0.9), dog(0.8)], 1, 0, 1 / 3),
    (LEFT, [cat(x=50), dog(0.9), dog(0.8, x=100)], 1, 0, 1 / 3),
    (LEFT, [cat(x=50), dog(0.9, x=100), dog(0.8)], 0, 0, 1 / 3),
    (LEFT, [cat(0.9, x=50), cat(0.8, x=-50), dog()], 1, 0, 1 / 3),
    (LEFT, [cat(0.8, x=50), cat(0.9, x=-50), dog()], 0, 0, 1 / 3),
    # Two boxes of 20: 0.1 · (20 + 20) = 4 pixels of an offset are free.
    (RIGHT, [cat(), dog()], 0, 0, 2 / 3),
    (RIGHT, [cat(), dog(x=4)], 0, 0, 2 / 3),
    (RIGHT, [cat(), dog(x=8)], 0, 0, 2 / 3),  # (8 - 4) / 8 is not above 0.5
    (RIGHT, [cat(), dog(x=8.5)], 1, 1, 1),  # 4.5 / 8.5
    (RIGHT, [cat(), dog(x=12)], 1, 1, 1),  # the boxes overlap
    (RIGHT, [cat(), dog(x=20, y=20)], 1, 1, 1),  # 16 / 28.3
    (BELOW, [cat(), dog(x=20, y=20)], 1, 1, 1),
    (RIGHT, [cat(), dog(x=20, y=40)], 0, 0, 2 / 3),  # 16 / 44.7
    (RIGHT, [cat(), dog(x=10, y=4)], 1, 1, 1),  # 6 / 10.8, by the whole offset's length
    (RIGHT, [cat(), dog(x=10, y=8)], 0, 0, 2 / 3),  # 6 / 12.8
    (TWO_DOGS_LEFT, [cat(x=50), dog(), dog(y=30)], 1, 1, 1),
    (TWO_DOGS_LEFT, [cat(x=50), dog(), dog(x=99)], 0, 0, 2 / 3),
    (TWO_DOGS_LEFT, [cat(x=50), dog()], 0, 0, (1 + 1 / 2 + 0) / 3),
    (LEFT_OF_TWO, [cat(x=50), cat(x=90), dog()], 1, 1, 1),
    (LEFT_OF_TWO, [cat(x=50), cat(x=-50), dog()], 0, 0, 2 / 3),
    (LEFT_OF_TWO, [cat(x=50), dog()], 0, 0, (1 / 2 + 1 + 0) / 3),
    (CHAIN, [cat(x=50), dog(), thing("bird", y=-50)], 1, 1, 1),
    (CHAIN, [cat(), dog(x=50), thing("bird", x=50, y=-50)], 0, 0, 3 / 5),  # no group to be above
]
ATTRIBUTES = [
    (RED_CAT_BLUE_DOG, [red(), dog(color="blue")], 1, 1, 1),
    (RED_CAT_BLUE_DOG, [blue(), dog(color="red")], 0, 0, 1 / 2),
    (RED_CAT_BLUE_DOG, [red(), dog(color="red")], 0, 0, 3 / 4),
    (RED_CAT_BLUE_DOG, [red()], 0, 0, 1 / 2),
    (RED_CAT_BLUE_DOG, [blue()], 0, 0, 1 / 4),
    (RED_CAT_BLUE_DOG, [], 0, 0, 0),
    (RED_CAT_BLUE_DOG, [red(0.9), red(0.8), dog(color="blue")], 1, 0, 1 / 2),
    (RED_CAT_BLUE_DOG, [red(0.8), blue(0.9), dog(color="blue")], 0, 0, 1 / 2),
]
TABLE = [
    (tag, *case)
    for tag, cases in zip(TAGS, (SINGLE, TWO, COUNTING, COLORED, PLACED, ATTRIBUTES), strict=True)
    for case in cases
]


@pytest.mark.parametrize(("tag", "requirement", "things", "correct", "strict", "soft"), TABLE)
def test_the_table(tag, requirement, things, correct, strict, soft) -> None:
    result = verdict(things, tag, requirement)
    assert (result.correct, result.strict) == (bool(correct), bool(strict))
    assert result.soft == pytest.approx(soft, abs=1e-9)
    assert bool(result.reasons) != result.correct


def test_the_sixteen_that_are_kept_are_the_surest() -> None:
    scores = [0.4 + 0.01 * i for i in range(30)]
    group = kept([cat(score)[0] for score in scores], "single_object")["cat"]
    assert [one.score for one in group] == sorted(scores, reverse=True)[:16]


def any_things(rng: np.random.Generator) -> list[Thing]:
    scores = rng.choice([0.2, 0.3, 0.5, 0.9, 0.95, 0.99], size=rng.integers(0, 12))
    return [
        thing(
            str(rng.choice(["cat", "dog", "bird"])),
            float(score),
            *rng.integers(0, 100, 2).astype(float),
            color=str(rng.choice(COLORS[:3])),
        )
        for score in scores
    ]


def any_requirement(rng: np.random.Generator) -> dict[str, Any]:
    include: list[dict[str, Any]] = []
    for number, name in enumerate(["cat", "dog", "bird"][: rng.integers(1, 4)]):
        entry = a(name, int(rng.integers(1, 4)))
        if rng.random() < 0.5:
            entry["color"] = str(rng.choice(COLORS[:3]))
        if number and rng.random() < 0.5:
            relation = str(rng.choice(["left of", "right of", "above", "below"]))
            entry["position"] = [relation, int(rng.integers(number))]
        include.append(entry)
    exclude = (("cat", int(rng.integers(1, 5))),) if rng.random() < 0.3 else ()
    return ask(*include, exclude=exclude)


PLACES = range(300)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[list[Thing], str, dict[str, Any]]]:
    rng = np.random.default_rng(0)
    return [(any_things(rng), str(rng.choice(TAGS)), any_requirement(rng)) for _ in PLACES]


def test_the_order_of_detections_does_not_matter(scenes) -> None:
    rng = np.random.default_rng(1)
    for things, tag, requirement in scenes:
        shuffled = [things[i] for i in rng.permutation(len(things))]
        assert verdict(shuffled, tag, requirement) == verdict(things, tag, requirement)


def test_a_class_that_nobody_asked_for_changes_nothing(scenes) -> None:
    for things, tag, requirement in scenes:
        more = [*things, thing("zebra"), thing("zebra", color="red")]
        assert verdict(more, tag, requirement) == verdict(things, tag, requirement)


def test_what_is_not_sure_enough_changes_nothing(scenes) -> None:
    for things, tag, requirement in scenes:
        more = [*things, cat(0.3, color="red"), dog(0.1)]
        assert verdict(more, tag, requirement) == verdict(things, tag, requirement)


def test_strict_is_correct_and_has_the_full_soft_score(scenes) -> None:
    stricts = 0
    for things, tag, requirement in scenes:
        result = verdict(things, tag, requirement)
        assert 0 <= result.soft <= 1
        assert not result.strict or (result.correct and result.soft == 1)
        # Without something excluded, a full soft score is strict, too.
        assert result.strict or result.soft < 1 or "exclude" in requirement
        stricts += result.strict
    assert stricts > 5


def test_moving_everything_changes_nothing(scenes) -> None:
    for things, tag, requirement in scenes:
        moved = [
            (
                Detection(
                    one.name,
                    one.score,
                    Box(one.box.left + 8, one.box.top + 4, one.box.right + 8, one.box.bottom + 4),
                ),
                color,
            )
            for one, color in things
        ]
        assert verdict(moved, tag, requirement) == verdict(things, tag, requirement)


def test_one_more_of_what_is_missing_never_hurts_the_count() -> None:
    """Up to as many as asked, the soft score of a count rises with every object."""
    softs = [verdict([cat()] * n, "counting", THREE_OR_MORE).soft for n in range(4)]
    assert all(first < second for first, second in pairwise(softs))


def test_the_names_are_cocos_eighty() -> None:
    assert len(set(NAMES)) == len(NAMES) == 80
