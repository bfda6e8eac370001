"""Calls of scorers that fail: what is not about an image does not cost it its score."""

from collections.abc import Sequence

import numpy as np
import pytest
from moody import Moody, Together

from flowopd.errors import FlowOPDError
from flowopd.rewards import UnavailableError
from flowopd.rewards.work import calls
from flowopd.rewards.work.calls import Failed, attempt
from flowopd.tasks import PromptRecord


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSE", 0.0)


def tried(scorer: Moody, *prompts: str) -> list[float | str]:
    """The score of each image, or why there is none."""
    images = np.stack([np.full((2, 2, 3), 5 * i, np.uint8) for i in range(len(prompts))])
    scores = attempt(scorer, images, [PromptRecord(prompt) for prompt in prompts])
    found: list[float | str] = []
    for score in scores:
        value = score.values["mood"]
        assert isinstance(score, Failed) == (value is None)
        assert set(score.values) == {"mood", "other"}
        found.append(score.reasons["mood"] if value is None else round(value * 255))
    return found


def test_scores_come_in_one_call() -> None:
    scorer = Moody()
    assert tried(scorer, "a", "b", "c") == [0, 5, 10]
    assert scorer.calls == [["a", "b", "c"]]


@pytest.mark.parametrize("bad", [[0], [3], [4], [1, 2], [0, 4], [0, 1, 2, 3, 4]])
def test_only_images_that_it_raises_for_are_missing(bad: Sequence[int]) -> None:
    prompts = ["raise" if i in bad else f"p{i}" for i in range(5)]
    expected = ["ValueError: it says raise" if i in bad else 5 * i for i in range(5)]
    assert tried(Moody(), *prompts) == expected


def test_the_images_of_a_prompt_stay_together_if_they_are_compared() -> None:
    scorer = Together()
    found = tried(scorer, "a", "raise", "a", "raise", "b")
    assert found == [0, "ValueError: it says raise", 10, "ValueError: it says raise", 20]
    assert all(call.count("a") in (0, 2) and call.count("raise") in (0, 2) for call in scorer.calls)


def test_a_wrong_number_of_results_is_a_failure() -> None:
    reason = "it gave 0 results for 1 images"
    assert tried(Moody(), "a", "short", "b") == [0, reason, 10]


def test_what_may_be_gone_the_next_time_is_tried_again_a_few_times() -> None:
    scorer = Moody()
    assert tried(scorer, "once", "a") == [0, 5]
    assert len(scorer.calls) == 2
    scorer = Moody()
    assert tried(scorer, "often") == ["ConnectionError: the line is down"]
    assert len(scorer.calls) == 3
    scorer = Moody()
    assert tried(scorer, "raise") == ["ValueError: it says raise"]
    assert len(scorer.calls) == 1


class Away(Moody):
    """Its server is away from the call with this number on."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.since = since

    def score(self, images, records):
        if len(self.calls) >= self.since:
            self.calls.append([record.prompt for record in records])
            raise UnavailableError("The server is away.")
        return super().score(images, records)


def test_what_is_about_the_whole_scorer_is_not_looked_for_in_the_images() -> None:
    scorer = Away(0)
    assert tried(scorer, *"abcdefgh") == ["The server is away."] * 8
    assert len(scorer.calls) == 1


def test_scores_from_before_the_scorer_was_away_are_kept() -> None:
    scorer = Away(2)
    away = "The server is away."
    assert tried(scorer, "raise", "b", "c", "d") == [away, away, 10, 15]
    assert [len(call) for call in scorer.calls] == [4, 2, 2]


def test_errors_of_ours_are_said_in_their_own_words() -> None:
    assert calls.in_words(FlowOPDError("There is no picture.")) == "There is no picture."
    assert calls.in_words(FlowOPDError()) == "FlowOPDError"


def test_long_errors_are_cut() -> None:
    assert len(calls.in_words(ValueError("x" * 1000))) == 300
    assert calls.in_words(KeyError()) == "KeyError"


def test_gradients_are_off_in_a_call() -> None:
    import torch

    class Looks(Moody):
        def score(self, images, records):
            self.calls.append(torch.is_grad_enabled())
            return super().score(images, records)

    scorer = Looks()
    tried(scorer, "a")
    assert scorer.calls[0] is False
    assert torch.is_grad_enabled()
