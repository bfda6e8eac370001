"""Judges at a chat server that answers well, badly, slowly, or not at all."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_openai import Asked, FakeOpenAI, chat, fake_openai, slowly

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import MetricInfo, UnavailableError
from flowopd.rewards.service import retry
from flowopd.rewards.settings import PATIENCE, ScorerSpec
from flowopd.rewards.work.calls import Failed, attempt
from flowopd.tasks.prompts import PromptRecord

QWEN_REPLY = "A {}.\nQuality: 4\nInstruction: 3.5\nOverall: {}"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@contextlib.contextmanager
def judge(fake: FakeOpenAI, name: str = "unifiedreward", **more: Any) -> Iterator[Any]:
    scorer = plugins.load_scorer({"name": name, "base_url": fake.url, **more})
    with contextlib.closing(scorer):
        yield scorer


def pictures(count: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.stack([np.full((height, width, 3), 10 * i, np.uint8) for i in range(count)])


def records(count: int) -> list[PromptRecord]:
    return [PromptRecord(f"caption number {i}.") for i in range(count)]


def number_of(asked: Asked) -> int:
    return int(asked.text.partition("caption number ")[2].partition(".")[0])


def by_caption(asked: Asked) -> str:
    return f"Well.\nFinal Score: {1 + number_of(asked) / 10}"


class TestGoodReplies:
    def test_are_scores_each_of_its_own_picture_and_caption(self) -> None:
        with fake_openai(by_caption) as fake, judge(fake) as scorer:
            scores = scorer.score(pictures(20), records(20))
        assert [one.values["unifiedreward"] for one in scores] == [1 + i / 10 for i in range(20)]
        assert scores[3].detail == {"reply": "Well.\nFinal Score: 1.3"}
        assert len(fake.asked) == 20
        for asked in fake.asked:
            assert asked.picture.shape == (512, 512, 3)
            assert (asked.picture == 10 * number_of(asked)).all()
            assert asked.body["model"] == "CodeGoat24/UnifiedReward-7b-v1.5"
            assert asked.body["temperature"] == 0
            assert asked.body["max_tokens"] == 1024
            assert "Authorization" not in asked.headers

    def test_of_qwenvl_keep_what_is_beside_the_overall_score(self) -> None:
        with (
            fake_openai(lambda asked: QWEN_REPLY.format("car", 2.5)) as fake,
            judge(fake, "qwenvl", model="any/model", extra={"seed": 7}) as scorer,
        ):
            (score,) = scorer.score(pictures(1), records(1))
        assert score.values == {"qwenvl": 2.5}
        assert score.detail["quality"] == 4
        assert score.detail["instruction"] == 3.5
        assert fake.asked[0].picture.shape == (20, 30, 3)
        assert (fake.asked[0].body["model"], fake.asked[0].body["seed"]) == ("any/model", 7)

    def test_are_kept_in_a_file_if_that_is_wanted(self, tmp_path: Path) -> None:
        file = tmp_path / "kept" / "replies.jsonl"

        def reply(asked: Asked) -> str:
            return "No." if number_of(asked) == 1 else by_caption(asked)

        with fake_openai(reply) as fake, judge(fake, replies=str(file)) as scorer:
            scorer.score(pictures(2), records(2))
            scorer.score(pictures(1), records(1))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["prompt"][15:16] for line in lines] == ["0", "1", "0"]
        assert [line["score"] for line in lines] == [1.0, None, 1.0]
        assert lines[1]["reply"] == "No."
        assert "has no 'Final Score: x'" in lines[1]["reason"]

    def test_come_so_many_at_a_time(self) -> None:
        three = threading.Barrier(3, timeout=20)

        def together(asked: Asked) -> str:
            three.wait()
            return by_caption(asked)

        with fake_openai(together) as fake, judge(fake, concurrency=3) as scorer:
            scores = scorer.score(pictures(12), records(12))
        assert [one.values["unifiedreward"] for one in scores] == [1 + i / 10 for i in range(12)]
        assert fake.most_at_once == 3

    def test_are_asked_for_with_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MY_KEY", "sk-123")
        with fake_openai(by_caption) as fake, judge(fake, api_key_env="MY_KEY") as scorer:
            scorer.score(pictures(1), records(1))
            assert "sk-123" not in str(scorer.settings)
        assert fake.asked[0].headers["Authorization"] == "Bearer sk-123"


class TestBadReplies:
    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("I cannot say.", "the reply has no 'Final Score: x': ...I cannot say."),
            ("", "the reply has no 'Final Score: x'"),
            ("Final Score: 50", "is 50, and not from 1 to 5"),
            (
                (200, chat("A long thou", "length")),
                "cut off (it ended with 'length': raise max_tokens): ...",
            ),
            (
                (200, chat("Final Score: 4.", "length")),
                "was cut off (it ended with 'length'",
            ),
            (
                (200, chat("Final Score: 4", "length")),
                "was cut off (it ended with 'length'",
            ),
            (
                (200, chat("Final Score: 4", "abort")),
                "was cut off (it ended with 'abort'): ",
            ),
            ((200, chat(None, "length")), "no text (it ended with 'length': raise max_tokens)"),
            (
                "Final Score: 3 or 4",
                "is '3 or 4', which is no single number: ...Final Sc",
            ),
            ((200, chat(None, "content_filter")), "no text (it ended with 'content_filter')"),
            ((400, {"error": {"message": "bad picture"}}), "it answered 400: bad picture"),
            ((422, "what?"), "it answered 422: what?"),
        ],
    )
    def test_are_missing_values_with_their_reason(self, reply: Any, reason: str) -> None:
        def answer(asked: Asked) -> Any:
            return reply if number_of(asked) == 1 else by_caption(asked)

        with fake_openai(answer) as fake, judge(fake) as scorer:
            first, second, third = scorer.score(pictures(3), records(3))
        assert (first.values["unifiedreward"], third.values["unifiedreward"]) == (1.0, 1.2)
        assert second.values == {"unifiedreward": None}
        assert reason in second.reasons["unifiedreward"]
        assert len(fake.asked) == 3, "what cannot be read is not asked for again"

    def test_are_kept_for_reading(self) -> None:
        with fake_openai(lambda asked: "A very fine picture.") as fake, judge(fake) as scorer:
            (score,) = scorer.score(pictures(1), records(1))
        assert score.detail == {"reply": "A very fine picture."}

    def test_are_only_those_that_did_not_come_to_an_end(self) -> None:
        ends = ["stop", "eos_token", "", None]

        def answer(asked: Asked) -> Any:
            return 200, chat("Final Score: 4", ends[number_of(asked)])

        with fake_openai(answer) as fake, judge(fake) as scorer:
            scores = scorer.score(pictures(4), records(4))
        assert [score.values["unifiedreward"] for score in scores] == [4.0] * 4


class TestTrouble:
    @pytest.mark.parametrize(
        "trouble",
        [
            (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
            (500, {"error": {"message": "out of memory"}}),
            (503, "<html>unavailable</html>"),
            (200, {"choices": []}),
            (200, "no JSON"),
            None,
        ],
    )
    def test_that_passes_is_waited_for(self, trouble: Any) -> None:
        troubled: set[int] = set()

        def answer(asked: Asked) -> Any:
            number = number_of(asked)
            if number % 2 and number not in troubled:
                troubled.add(number)
                return trouble
            return by_caption(asked)

        with fake_openai(answer) as fake, judge(fake) as scorer:
            scores = scorer.score(pictures(6), records(6))
        assert [one.values["unifiedreward"] for one in scores] == [1 + i / 10 for i in range(6)]
        assert len(fake.asked) == 9

    def test_that_does_not_pass_leaves_its_picture_without_a_score(self) -> None:
        def answer(asked: Asked) -> Any:
            return (500, "broken") if number_of(asked) == 1 else by_caption(asked)

        with fake_openai(answer) as fake, judge(fake, attempts=3) as scorer:
            _, second, third = scorer.score(pictures(3), records(3))
        reason = second.reasons["unifiedreward"]
        assert reason == "no answer in 3 tries; the last: it answered 500: broken"
        assert third.values["unifiedreward"] == 1.2
        assert [number_of(asked) for asked in fake.asked].count(1) == 3

    def test_of_slowness_ends_in_time(self) -> None:
        def answer(asked: Asked) -> str:
            return slowly(30 if number_of(asked) == 1 else 0, by_caption(asked))

        start = time.monotonic()
        with (
            fake_openai(answer) as fake,
            judge(fake, request_seconds=0.3, attempts=2) as scorer,
        ):
            first, second = scorer.score(pictures(2), records(2))
            assert time.monotonic() - start < 10
        assert first.values["unifiedreward"] == 1.0
        assert "no answer within 0.3 seconds" in second.reasons["unifiedreward"]

    def test_is_given_up_when_the_call_has_taken_its_time(self) -> None:
        """What was answered until then is kept; what waits for its turn is missing, too."""
        never = threading.Event()

        def answer(asked: Asked) -> Any:
            if number_of(asked) == 2:
                return 500, "broken", {"Retry-After": "30"}
            if number_of(asked) > 2:
                never.wait(30)
            return by_caption(asked)

        start = time.monotonic()
        with (
            fake_openai(answer) as fake,
            judge(fake, call_seconds=3.0, concurrency=3, size=16) as scorer,
        ):
            found = attempt(scorer, pictures(6), records(6))
            assert time.monotonic() - start < 10
            asked = len(fake.asked)
            never.set()
        assert asked == 5, "the last picture had no turn"
        values = [score.values["unifiedreward"] for score in found]
        assert values == [1.0, 1.1, None, None, None, None]
        reasons = [score.reasons["unifiedreward"] for score in found[2:]]
        late = "no answer within the 3 seconds of its call (call_seconds)"
        assert reasons == [f"{late}; the last: it answered 500: broken", late, late, late]
        assert not any(isinstance(score, Failed) for score in found)

    def test_that_lasts_for_a_whole_call_is_an_error(self) -> None:
        never = threading.Event()
        with (
            fake_openai(lambda asked: never.wait(30) and None) as fake,
            judge(fake, call_seconds=0.3) as scorer,
        ):
            with pytest.raises(UnavailableError, match=r"within the 0\.3 seconds of its call"):
                scorer.score(pictures(2), records(2))
            never.set()

    @pytest.mark.parametrize(("status", "most"), [(500, 64), (401, 4), (404, 4)])
    def test_that_is_not_about_pictures_is_not_looked_for_in_them(
        self, status: int, most: int
    ) -> None:
        """Every picture is asked for `attempts` times at most, and after a refusal none is."""
        with (
            fake_openai(lambda asked: (status, "no")) as fake,
            judge(fake, concurrency=16 if status == 500 else 4) as scorer,
        ):
            found = attempt(scorer, pictures(16), records(16))
        assert len(fake.asked) == most if status == 500 else len(fake.asked) <= most
        assert all(isinstance(score, Failed) for score in found)
        assert all(f"it answered {status}: no" in one.reasons["unifiedreward"] for one in found)

    def test_with_every_picture_is_an_error(self) -> None:
        with fake_openai(lambda asked: (500, "broken")) as fake, judge(fake, attempts=2) as scorer:
            with pytest.raises(FlowOPDError, match=r"gets no answer from .*answered 500: broken"):
                scorer.score(pictures(3), records(3))
            url = fake.url
        scorer = plugins.load_scorer({"name": "qwenvl", "base_url": url, "attempts": 2})
        with contextlib.closing(scorer), pytest.raises(FlowOPDError, match="Start the server"):
            scorer.score(pictures(1), records(1))

    @pytest.mark.parametrize(
        ("status", "sentence"),
        [(401, "taken from the environment's OPENAI_API_KEY"), (404, "It may have no model")],
    )
    def test_of_ones_own_making_is_an_error_at_once(self, status: int, sentence: str) -> None:
        with (
            fake_openai(lambda asked: (status, {"error": {"message": "no"}})) as fake,
            judge(fake, concurrency=1) as scorer,
            pytest.raises(FlowOPDError) as caught,
        ):
            scorer.score(pictures(20), records(20))
        assert sentence in str(caught.value)
        assert len(fake.asked) == 1

    def test_in_one_call_does_not_end_the_other(self) -> None:
        def answer(asked: Asked) -> Any:
            return (500, "broken") if number_of(asked) < 3 else by_caption(asked)

        found: dict[str, Any] = {}
        with fake_openai(answer) as fake, judge(fake, attempts=2) as scorer:

            def bad() -> None:
                try:
                    scorer.score(pictures(3), records(3))
                except FlowOPDError as error:
                    found["bad"] = str(error)

            def good() -> None:
                found["good"] = scorer.score(pictures(3), records(6)[3:])

            threads = [threading.Thread(target=one) for one in (bad, good)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert "broken" in found["bad"]
        assert [score.values["unifiedreward"] for score in found["good"]] == [1.3, 1.4, 1.5]


class TestLoading:
    def test_asks_for_the_model(self) -> None:
        with fake_openai(by_caption, models=["one/model", "other"]) as fake:
            with judge(fake, "qwenvl", model="one/model") as scorer:
                scorer.load()
            with (
                judge(fake, "qwenvl", model="two/model") as scorer,
                pytest.raises(FlowOPDError, match="no model 'two/model'; it has one/model, other"),
            ):
                scorer.load()

    def test_does_without_a_list_of_models(self) -> None:
        with fake_openai(by_caption) as fake, judge(fake) as scorer:
            scorer.load()

    def test_says_where_nobody_answers(self) -> None:
        with fake_openai(by_caption) as fake:
            url = fake.url
        scorer = plugins.load_scorer({"name": "unifiedreward", "base_url": url})
        with contextlib.closing(scorer), pytest.raises(FlowOPDError, match=f"no answer from {url}"):
            scorer.load()


class TestChecks:
    def test_compare_a_right_caption_with_a_wrong_one(self) -> None:
        def answer(asked: Asked) -> str:
            return f"Final Score: {4 if 'a red circle' in asked.text else 1.5}"

        with fake_openai(answer) as fake, judge(fake) as scorer:
            (finding,) = scorer.self_check()
        assert (finding.value, finding.good) == (2.5, True)

    @pytest.mark.parametrize(("reply", "value"), [("Final Score: 3", 0.0), ("Well.", None)])
    def test_are_not_good_where_nothing_is_told_apart(
        self, reply: str, value: float | None
    ) -> None:
        with fake_openai(lambda asked: reply) as fake, judge(fake) as scorer:
            (finding,) = scorer.self_check()
        assert (finding.value, finding.good) == (value, False)


class TestDeclarations:
    def test_need_no_server(self) -> None:
        unified, qwen = (plugins.load_scorer(name) for name in ("unifiedreward", "qwenvl"))
        assert unified.metrics == (MetricInfo("unifiedreward", 1, 5, scale=5.0),)
        assert qwen.metrics == (MetricInfo("qwenvl", 1, 5, scale=5),)
        assert unified.about.models == ("CodeGoat24/UnifiedReward-7b-v1.5",)
        picture, record = qwen.example()
        assert picture.shape == (512, 512, 3)
        assert record.prompt

    def test_end_a_call_before_it_is_given_up(self) -> None:
        """A call that the scorer's `timeout` ends loses what was answered."""
        assert plugins.load_scorer("qwenvl").settings.call_seconds < PATIENCE

    def test_are_known_by_what_changes_a_number(self, tmp_path: Path) -> None:
        def identity(**more: Any) -> dict[str, Any]:
            return ScorerSpec.model_validate({"name": "qwenvl", **more}).identity()

        assert identity() == {}
        assert identity(base_url="http://gpu7:1/v1", concurrency=2, replies="x.jsonl") == {}
        assert identity(call_seconds=60) == {}
        assert identity(model="a/b", temperature=0.5) == {"model": "a/b", "temperature": 0.5}
        rubric = tmp_path / "mine.md"
        head = "---\nversion: 1\nscore: S\nlow: 0\nhigh: 1\n---\n"
        rubric.write_text(head + "{caption}")
        first = identity(rubric=str(rubric))
        assert set(first["rubric"]) == {"sha256"}
        rubric.write_text(head + "Rate {caption}")
        assert identity(rubric=str(rubric)) != first

    def test_take_ones_own_rubric(self, tmp_path: Path) -> None:
        rubric = tmp_path / "mine.md"
        rubric.write_text("---\nversion: 1\nscore: Points\nlow: 0\nhigh: 10\n---\nRate {caption}")
        with (
            fake_openai(lambda asked: f"{asked.text} Points: 7") as fake,
            judge(fake, "qwenvl", rubric=str(rubric)) as scorer,
        ):
            (score,) = scorer.score(pictures(1), records(1))
        assert scorer.metrics == (MetricInfo("qwenvl", 0, 10, scale=10),)
        assert score.values == {"qwenvl": 7}
        assert score.detail["reply"] == "Rate caption number 0. Points: 7"

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"base_url": "localhost:8000"}, "begin with http"),
            ({"model": ""}, "qwenvl.model"),
            ({"temprature": 1}, "Did you mean 'qwenvl.temperature'"),
            ({"api_key": "sk"}, "Unknown key"),
            ({"device": "cuda"}, "the chat server decides that"),
            ({"batch_size": 4}, "the chat server decides that"),
        ],
    )
    def test_that_are_wrong_are_refused(self, given: dict[str, Any], sentence: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            plugins.load_scorer({"name": "qwenvl", **given})
        assert sentence in str(caught.value)
