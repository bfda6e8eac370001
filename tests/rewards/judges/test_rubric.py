"""Rubrics: the question that is asked, and the score that is read in the reply, or not."""

import contextlib
import time
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
        ("said", "score"),
        [
            ("Final Score: 4", 4),
            ("Final Score: 3.75", 3.75),
            ("Final Score:2", 2),
            ("final score : 2.5", 2.5),
            ("Final Score = 3", 3),
            ("Final Score：4", 4),
            ("Final Score: 1", 1),
            ("Final Score: 4.", 4),
            ("Final Score: 4.5.", 4.5),
            ("Final Score: 4 \t\r\nIt is sharp.", 4),
            ("It is sharp.\nFinal Score: 5\n", 5),
            ("It is sharp. Final Score: 5", 5),
            ("**Final Score:** 4.5", 4.5),
            ("**Final Score: 4.5**", 4.5),
            ("**Final Score**: 4.", 4),
            ("### Final Score: 4", 4),
            ("Final Score:\n\n**4**", 4),
            ("Final Score: **4**.", 4),
            ("Final Score: _4_", 4),
            ("Final Score: [4]", 4),
            ("[Final Score: 4]", 4),
            ("(Final Score: 4.)", 4),
            ('"Final Score: 4"', 4),
            ("'Final Score': '4'", 4),
            ("Final Score: `4`", 4),
            ("Final Score: 4</answer>", 4),
            ("Final Score: 4<|im_end|>", 4),
            ("Final Score: 4/5", 4),
            ("Final Score: 4.5 / 5.0", 4.5),
            ("Final Score: **4**/5", 4),
            ("Final Score: **4/5**.", 4),
            ("Final Score: 4 out of 5.", 4),
            ("Final Score: 4 (out of 5)", 4),
        ],
    )
    def test_are_read_as_judges_write_them(self, said: str, score: float) -> None:
        assert UNIFIED.score(said) == score

    @pytest.mark.parametrize(
        ("reply", "score"),
        [
            ("The caption says 'Final Score: 5'. It is not so.\nFinal Score: 2", 2),
            ("Final Score: 3\nNo, I missed the cat.\nFinal Score: 4", 4),
            ("<think>Final Score: 1</think>Final Score: 4", 4),
            ("Final Score: 1\n</think>\nFinal Score: 4", 4),
            ("<think>Final Score: 1</think>a</think>Final Score: 4", 4),
            ("<THINKING>Final Score: 1</THINKING>Final Score: 4", 4),
            ("Final Score: 1\n◁/think▷Final Score: 4", 4),
            ("[THINK]Final Score: 1\n[/THINK]Final Score: 4", 4),
        ],
    )
    def test_are_the_last_that_was_said_and_not_thought(self, reply: str, score: float) -> None:
        assert UNIFIED.score(reply) == score

    @pytest.mark.parametrize(
        "value",
        [
            *("", " ", "x", "four", "?", "N/A", "~4", ">4", "about 4", "+4", "−4", "٤", "½"),
            *("4 or 5", "3 or 4", "4 to 5", "1-5", "4-5", "4 - 5", "4–5", "4 and 5", "4, 5", "4 5"),
            *("4,5", "4.5.6", "1.2.3", "4..", "4...", "4…", "4:5", "4_5", "4'5", "4e0", "4½"),
            *("4%", "4 %", "80%", "4 stars", "4 points", "4th", "4x", "4°", "4?", "4!", "4+", "4/"),
            *("2/5/2024", "4/5/6", "4/five", "4 out of", "4 out of five", "4 of 5", "4//5"),
            *("3 maybe...", "4, I think", "4 (good)", "4. The cat is missing", "4 - sharp", "4; 3"),
            *("(4+3)/2 = 3.5", "5 - 1 = 4", "4 = 8/2", "~~4~~ 3", "**2** 3", "2**2", "4\\5"),
            *("[1, 5]", "{4, 5}", "\\boxed{4}", "<4>", "4 <b>or</b> 5", "4</b> or 5", "4 | 3"),
            *("- 4", "\n- 4", "\n1. The cat is missing", "\nBecause it is sharp: 4"),
        ],
    )
    def test_that_are_no_single_number_are_not_read(self, value: str) -> None:
        for reply in (f"Final Score: {value}", f"Final Score: 2\nNo.\nFinal Score: {value}\nSo."):
            with pytest.raises(FlowOPDError, match="which is no single number"):
                UNIFIED.score(reply)

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("", "has no 'Final Score: x'"),
            ("I cannot judge this image.", "has no 'Final Score: x'"),
            ("Score: 4", "has no 'Final Score: x'"),
            ("Final Score 4", "has no 'Final Score: x'"),
            ("Semi-Final Score: 4", "has no 'Final Score: x'"),
            ("Final Scores: 4", "has no 'Final Score: x'"),
            ("Final Score: maybe 4\nor not", "Final Score is 'maybe 4', which is no single number"),
            ("Final Score: 0", "is 0, and not from 1 to 5"),
            ("Final Score: 9", "is 9, and not from 1 to 5"),
            ("Final Score: 85", "is 85, and not from 1 to 5"),
            ("Final Score: 5.01", "is 5.01, and not from 1 to 5"),
            ("Final Score: -3", "is -3, and not from 1 to 5"),
            ("Final Score: 4/10", "out of 10, and not out of 5"),
            ("Final Score: 4 out of 10", "out of 10, and not out of 5"),
            ("Final Score: **4** / **10**", "out of 10, and not out of 5"),
            ("<think>Final Score: 3", "has no 'Final Score: x'"),
            ("<think>Final Score: 3</think>I am not sure.", "has no 'Final Score: x'"),
            ("Final Score: 3\n</think>I cannot rate this.", "has no 'Final Score: x'"),
            ("Fine.</think>Well. <think>Final Score: 3", "has no 'Final Score: x'"),
        ],
    )
    def test_that_are_not_there_are_not_made_up(self, reply: str, reason: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            UNIFIED.score(reply)
        assert reason in str(caught.value)

    def test_of_a_long_reply_are_read_quickly(self) -> None:
        said = "Final Score: 4"
        for filling in (" ", "*", "</s>", "<think>", said, f"{said} ", said + " " * 99):
            long = filling * (60_000 // len(filling))
            start = time.process_time()
            with contextlib.suppress(FlowOPDError):
                UNIFIED.score(f"{said}{long}x\n{long}")
            assert time.process_time() - start < 1

    def test_of_several_respects(self) -> None:
        reply = "A red car.\nQuality: 4.5\nInstruction: 2\nOverall: 2.5"
        assert QWEN.score(reply) == 2.5
        assert QWEN.others(reply) == {"quality": 4.5, "instruction": 2}
        assert QWEN.others("Overall: 3, Quality: 77") == {}
        assert QWEN.others("Quality: 4 or 5\nInstruction: 3 </think>\nOverall: 4") == {}


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
            ("---\nversion: 1\nscore: S\nlow: 5\nhigh: 1\n---\n{caption}", "less than its high, 1"),
            ("---\nversion: 1\nscore: S\nlow: 0\nhigh: .inf\n---\n{caption}", "high"),
            ("---\nversion: 1\nscore: S\nlow: -2\nhigh: 0\n---\n{caption}", "say its scale"),
            ("---\nversion: 1\nscore: S\nlow: 0\nhigh: 1\nscale: 0\n---\n{caption}", "scale"),
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
        assert rubric.scale == 10

    def test_may_say_their_scale_and_go_below_0(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.md"
        head = "---\nversion: 1\nscore: Points\nlow: -2\nhigh: 2\nscale: 4\n---\n"
        file.write_text(head + "Rate: {caption}\n")
        rubric = read_rubric(file)
        assert rubric.score("Points: -1.5") == -1.5
        assert rubric.scale == 4

    def test_that_come_along_have_the_scale_of_their_training_reward(self) -> None:
        assert (UNIFIED.scale, QWEN.scale) == (5, 5)

    def test_that_are_not_there_are_said_to_be_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FlowOPDError, match="cannot be read"):
            read_rubric(tmp_path / "none.md")
