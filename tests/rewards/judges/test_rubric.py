"""Rubrics: the question that is asked, and the score that is read in the reply, or not."""

from pathlib import Path

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.judges.rubric import Rubric, own_rubric, read_rubric

UNIFIED, QWEN = own_rubric("unifiedreward"), own_rubric("qwenvl")


class TestQuestions:
    @pytest.mark.parametrize("rubric", [UNIFIED, QWEN])
    def test_hold_the_caption_as_it_is(self, rubric: Rubric) -> None:
        caption = 'a sign that says "{caption} {0} %s" & <b>\n'
        assert rubric.question(caption).count(caption) == 1
        assert (rubric.low, rubric.high) == (1, 5)
        assert rubric.version >= 1

    def test_ask_for_what_is_read(self) -> None:
        assert "Final Score: x" in UNIFIED.question("x")
        for label in ("Quality: x", "Instruction: x", "Overall: x"):
            assert label in QWEN.question("x")


class TestScores:
    @pytest.mark.parametrize(
        ("reply", "score"),
        [
            ("Final Score: 4", 4),
            ("Final Score: 3.75", 3.75),
            ("Final Score:2", 2),
            ("final score : 2.5", 2.5),
            ("**Final Score:** 4.5", 4.5),
            ("**Final Score: 4.5**", 4.5),
            ("Final Score: **4**.", 4),
            ("Final Score: [4]", 4),
            ("Final Score: 4/5", 4),
            ("Final Score: 4.5 / 5.0", 4.5),
            ("It is sharp.\nFinal Score: 5\n", 5),
            ("Final Score: 1", 1),
            ("The caption says 'Final Score: 5'. It is not so.\nFinal Score: 2", 2),
            ("<think>Final Score: 1? No.</think>Final Score: 4", 4),
            ("Final Score = 3", 3),
        ],
    )
    def test_are_read(self, reply: str, score: float) -> None:
        assert UNIFIED.score(reply) == score

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("", "has no 'Final Score: x'"),
            ("I cannot judge this image.", "has no 'Final Score: x'"),
            ("Score: 4", "has no 'Final Score: x'"),
            ("Final Score: four", "has no 'Final Score: x'"),
            ("Final Score: x", "has no 'Final Score: x'"),
            ("Final Score: -3", "has no 'Final Score: x'"),
            ("Give a Final Score: 1-5", "has no 'Final Score: x'"),
            ("Final Score: 1.2.3", "has no 'Final Score: x'"),
            ("Final Score: 0", "is 0, and not from 1 to 5"),
            ("Final Score: 9", "is 9, and not from 1 to 5"),
            ("Final Score: 85", "is 85, and not from 1 to 5"),
            ("Final Score: 4/10", "out of 10, and not out of 5"),
            ("<think>Final Score: 3", "has no 'Final Score: x'"),
            ("<think>Final Score: 3</think>I am not sure.", "has no 'Final Score: x'"),
        ],
    )
    def test_that_cannot_be_read_are_not_made_up(self, reply: str, reason: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            UNIFIED.score(reply)
        assert reason in str(caught.value)

    def test_of_several_respects(self) -> None:
        reply = "A red car.\nQuality: 4.5\nInstruction: 2\nOverall: 2.5"
        assert QWEN.score(reply) == 2.5
        assert QWEN.others(reply) == {"quality": 4.5, "instruction": 2}
        assert QWEN.others("Overall: 3, Quality: 77") == {}


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("Rate {caption}", "should begin with a line of ---"),
            ("---\nversion: 1\nRate {caption}", "another line of ---"),
            ("---\nversion: 1\nscore: S\nlow: 0\nhigh: 1\n---\nRate it", "has no {caption}"),
            ("---\nversion: 0\nscore: S\nlow: 0\nhigh: 1\n---\n{caption}", "'version' is 0"),
            ("---\nversion: 1\nlow: 0\nhigh: 1\n---\n{caption}", "'score' is missing"),
            ("---\n[\n---\n{caption}", "no YAML"),
        ],
    )
    def test_that_are_wrong_are_refused(self, content: str, sentence: str, tmp_path: Path) -> None:
        file = tmp_path / "mine.md"
        file.write_text(content)
        with pytest.raises(FlowOPDError) as caught:
            read_rubric(file)
        assert sentence in str(caught.value)
        assert str(file) in str(caught.value)

    def test_of_ones_own_have_their_own_range(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.md"
        file.write_text("---\nversion: 3\nscore: Points\nlow: 0\nhigh: 10\n---\nRate: {caption}\n")
        rubric = read_rubric(file)
        assert rubric.question("a cat") == "Rate: a cat"
        assert rubric.score("Points: 7.5/10") == 7.5

    def test_that_are_not_there_are_said_to_be_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FlowOPDError, match="cannot be read"):
            read_rubric(tmp_path / "none.md")
