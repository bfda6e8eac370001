"""Rewards: weighted sums of metrics, by the task of each sample; what is missing stays missing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.rewards.reward import RewardFunction, RewardTerm, Scored
from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks import PromptRecord

B = 6


class Levels:
    """The brightness of red and of green; nothing of a blue picture."""

    name, version, tasks, grouped = "levels", 1, None, False
    metrics = (MetricInfo("red", 0, 255), MetricInfo("green", 0, 255))

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        self.seen.append([record.prompt for record in records])
        return [
            Scores({"red": None, "green": None}, {"red": "it is blue", "green": "it is blue"})
            if image[..., 2].any()
            else Scores({"red": float(image[..., 0].mean()), "green": float(image[..., 1].mean())})
            for image in images
        ]


class Words:
    """The length of the prompt; one of four letters it cannot read."""

    name, version, grouped = "words", 1, False
    tasks = frozenset({"text"})
    metrics = (MetricInfo("length"),)

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        return [Scores({"length": float(len(record.prompt))}) for record in records]

    def check(self, record: PromptRecord) -> None:
        if len(record.prompt) == 4:
            raise FlowOPDError("it has four letters.")


def terms(**weights: Any) -> dict[str, RewardTerm]:
    return {
        name: build(RewardTerm, value if isinstance(value, dict) else {"weight": value})
        for name, value in weights.items()
    }


def pictures(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), colour, np.uint8) for colour in colours])


def records(*prompts: str, task: str = "text") -> list[PromptRecord]:
    return [PromptRecord(prompt, task) for prompt in prompts]


class TestValues:
    def test_are_sums_of_weight_times_value_by_scale(self) -> None:
        reward = RewardFunction(
            [Levels(), Words()], {"a": terms(red={"weight": 2, "scale": 100}, length=-0.5)}
        )
        found = reward(pictures((50, 0, 0), (200, 9, 0)), records("one", "three"), ["a", "a"])
        assert found.values.tolist() == pytest.approx([2 * 0.5 - 1.5, 2 * 2.0 - 2.5])
        assert found.parts["red"].tolist() == [50, 200]
        assert found.parts["length"].tolist() == [3, 5]
        assert "green" not in found.parts
        assert found.reasons == {}

    def test_every_sample_is_rewarded_as_its_task_says(self) -> None:
        """By the task that routes the sample, not by the kind of its prompt."""
        reward = RewardFunction(
            [Levels(), Words()], {"a": terms(red=1), "b": terms(green=1), "c": terms(length=1)}
        )
        images = pictures((1, 2, 0), (3, 4, 0), (5, 6, 0), (7, 8, 0))
        found = reward(images, records("x", "x", "xyz", "x"), ["b", "a", "c", "b"])
        assert found.values.tolist() == [2, 3, 3, 8]
        np.testing.assert_array_equal(found.parts["green"], [2, np.nan, np.nan, 8])
        np.testing.assert_array_equal(found.parts["red"], [np.nan, 3, np.nan, np.nan])

    def test_a_scorer_sees_only_what_it_is_needed_for(self) -> None:
        levels = Levels()
        reward = RewardFunction(
            [levels, Words()], {"a": terms(red=1, green=1), "b": terms(length=1)}
        )
        reward(pictures(*[(1, 1, 0)] * 3), records("x", "y", "z"), ["a", "b", "a"])
        assert levels.seen == [["x", "z"]]
        reward(pictures((1, 1, 0)), records("x"), ["b"])
        assert len(levels.seen) == 1

    def test_scores_are_of_pairs_whatever_the_order_of_the_batch(self) -> None:
        rng = np.random.default_rng(0)
        reward = RewardFunction(
            [Levels(), Words()], {"a": terms(red=1, length=100), "b": terms(green=1)}
        )
        images = rng.integers(0, 255, (B, 2, 2, 3)).astype(np.uint8)
        images[..., 2] = 0
        images[4, ..., 2] = 9
        found = records(*("x" * n for n in range(1, B + 1)))
        tasks = ["a", "b", "a", "b", "b", "a"]
        plain = reward(images, found, tasks)
        order = rng.permutation(B)
        mixed = reward(images[order], [found[i] for i in order], [tasks[i] for i in order])
        np.testing.assert_array_equal(mixed.values, plain.values[order])
        np.testing.assert_array_equal(mixed.parts["red"], plain.parts["red"][order])
        assert set(mixed.reasons) == {list(order).index(4)}


class TestMissing:
    @pytest.mark.parametrize("first", [Levels, Words])
    def test_a_missing_part_leaves_the_picture_without_a_reward(self, first: type) -> None:
        """NaN with its reason, never 0, whichever scorer comes first."""
        scorers = sorted([Levels(), Words()], key=lambda scorer: not isinstance(scorer, first))
        reward = RewardFunction(scorers, {"a": terms(red=1, length=1)})
        found = reward(pictures((1, 1, 9), (1, 1, 0)), records("x", "x"), ["a", "a"])
        assert np.isnan(found.values[0])
        assert found.values[1] == 2
        assert found.reasons == {0: "red: it is blue"}
        np.testing.assert_array_equal(found.parts["red"], [np.nan, 1])
        np.testing.assert_array_equal(found.parts["length"], [1, 1])

    def test_what_no_scorer_was_asked_for_is_no_zero(self) -> None:
        levels, words = Levels(), Words()
        reward = RewardFunction([levels, words], {"a": terms(red=1, length=1), "b": terms(red=1)})
        found = [Scored(levels, [0, 1], [Scores({"red": 1.0}), Scores({"red": 2.0})])]
        result = reward.rewards(found, ["a", "b"])
        np.testing.assert_array_equal(result.values, [np.nan, 2])
        assert result.reasons == {0: "length: no number"}

    @pytest.mark.parametrize(
        "scores",
        [
            Scores({}),
            Scores({"odd": None}),
            Scores({"odd": float("nan")}),
            Scores({"odd": float("inf")}),
        ],
    )
    def test_what_is_no_number_is_missing(self, scores: Scores) -> None:
        class Odd:
            name, version, tasks, grouped = "odd", 1, None, False
            metrics = (MetricInfo("odd"),)

            def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
                return [scores]

        found = RewardFunction([Odd()], {"a": terms(odd=1)})(
            pictures((0, 0, 0)), records("x"), ["a"]
        )
        assert np.isnan(found.values).all()
        assert found.reasons == {0: "odd: no number"}


class Rated(Levels):
    """On a scale of 1 to 5."""

    metrics = (MetricInfo("red", 1, 5, scale=5.0), MetricInfo("green", 0, 255))


class TestScales:
    def test_a_term_that_says_nothing_is_divided_by_the_metrics_own(self) -> None:
        own = {"weight": 2, "scale": 4}
        reward = RewardFunction([Rated()], {"a": terms(red=2, green=1), "b": terms(red=own)})
        found = reward(pictures((3, 7, 0), (3, 7, 0)), records("x", "x"), ["a", "b"])
        assert found.values.tolist() == pytest.approx([2 * 3 / 5 + 7, 2 * 3 / 4])
        assert found.parts["red"].tolist() == [3, 3]


class TestParts:
    def test_rewards_are_added_up_in_the_same_order_however_they_come(self) -> None:
        """To the bit: sums of three terms depend on their order."""
        levels, words = Levels(), Words()
        reward = RewardFunction([levels, words], {"a": terms(red=0.1, green=0.7, length=0.3)})
        images, found = pictures(*[(i, 3 * i, 0) for i in range(B)]), records(*"abcdef")
        tasks = ["a"] * B
        whole = reward(images, found, tasks)
        parts = [
            Scored(scorer, places, scorer.score(images[places], [found[i] for i in places]))
            for scorer in (words, levels)
            for places in ([3, 5], [0, 1, 2, 4])
        ]
        again = reward.rewards(parts, tasks)
        assert again.values.tolist() == whole.values.tolist()
        assert all((again.parts[m] == whole.parts[m]).all() for m in ("red", "green", "length"))

    def test_which_scorers_the_pictures_of_tasks_need(self) -> None:
        levels, words = Levels(), Words()
        reward = RewardFunction([levels, words], {"a": terms(red=1), "b": terms(length=1), "c": {}})
        assert reward.needed(["a", "b", "a", "c"]) == [(levels, [0, 2]), (words, [1])]
        assert reward.needed(["c"]) == []


class TestRefusals:
    def test_two_scorers_of_one_metric(self) -> None:
        with pytest.raises(FlowOPDError, match="'levels' and 'levels' both give the metric 'red'"):
            RewardFunction([Levels(), Levels()], {})

    def test_a_metric_that_no_scorer_gives(self) -> None:
        with pytest.raises(
            FlowOPDError, match=r"'blue', which no scorer gives.* red, green, length"
        ):
            RewardFunction([Levels(), Words()], {"a": terms(blue=1)})
        with pytest.raises(FlowOPDError, match=r"none \(scorers is empty\)"):
            RewardFunction([], {"a": terms(red=1)})

    def test_weights_that_are_all_zero(self) -> None:
        with pytest.raises(FlowOPDError, match="has no weight that is not 0"):
            RewardFunction([Levels()], {"a": terms(red=0, green=0)})
        RewardFunction([Levels()], {"a": terms(red=0, green=1), "b": {}})

    def test_prompts_of_a_kind_that_a_scorer_does_not_read(self) -> None:
        reward = RewardFunction([Levels(), Words()], {"a": terms(length=1), "b": terms(red=1)})
        found = records("a circle", task="compose")
        with pytest.raises(
            FlowOPDError, match="'words' does not read prompts of the kind 'compose'"
        ):
            reward.check("a", found)
        reward.check("b", found)
        reward.check("a", records("a word"))

    def test_a_prompt_that_a_scorer_cannot_score_is_refused_with_its_name(self) -> None:
        reward = RewardFunction([Words()], {"a": terms(length=1)})
        sentence = "'words' cannot score the prompt 'four': it has four letters"
        with pytest.raises(FlowOPDError, match=sentence):
            reward.check("a", records("one", "four"))

    @pytest.mark.parametrize(
        ("data", "key"),
        [
            ({"weight": float("nan")}, "weight"),
            ({"weight": True}, "weight"),
            ({"scale": 0}, "scale"),
            ({"scale": -5}, "scale"),
            ({"scale": float("inf")}, "scale"),
        ],
    )
    def test_terms_that_are_no_numbers(self, data: dict[str, Any], key: str) -> None:
        with pytest.raises(FlowOPDError, match=f"The key '{key}' is"):
            build(RewardTerm, data)
