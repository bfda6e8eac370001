"""The formula of the OCR score and the text that a prompt asks for, by hand."""

import random
import time

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.ocr.text import PAIRS, ocr_score, plain, quoted, target_of
from flowopd.tasks.prompts import PromptRecord


@pytest.mark.parametrize(
    ("read", "target", "score"),
    [
        ("Spring Sale", "Spring Sale", 1),
        ("spring sale", "SPRING SALE", 1),
        ("SpringSale", "Spring Sale", 1),
        ("S p r i n g Sale", "Spring Sale", 1),
        ("Big Spring Sale 2024", "Spring Sale", 1),  # contained
        ("SaleSpring", "Spring Sale", 0.2),  # 8 edits of 10: 4 out before, 4 in after
        ("", "Spring Sale", 0),
        ("Spring", "Spring Sale", 0.6),  # 4 of 10 letters are missing
        ("Sprang Sale", "Spring Sale", 0.9),
        ("Sprang Sole", "Spring Sale", 0.8),
        ("pring Sale", "Spring Sale", 0.9),
        ("SSpring Sal", "Spring Sale", 0.8),  # one too many, one missing
        ("cat", "dog", 0),
        ("cot", "dog", 1 / 3),
        ("a very long text about something else", "dog", 0),  # no less than 0
        ("xy", "a", 0),
        ("a", "a", 1),
        ("Café", "CAFÉ", 1),
        ("Cafe\u0301", "Caf\u00e9", 1),  # accents apart and together
        ("Cafe", "Café", 0.75),
        ("你好世界", "你好", 1),
        ("你号", "你好", 0.5),
        ("GROẞE STRAẞE", "große straße", 1),
        ("50%\tOFF\n", "50% off", 1),
        ("Don't", "Don’t", 0.8),  # another apostrophe is another letter
        ('say "yes"', '"yes"', 1),
    ],
)
def test_score(read: str, target: str, score: float) -> None:
    assert ocr_score(read, target) == pytest.approx(score)


def test_plain() -> None:
    assert plain("  The\u00a0Big \n Sale ") == "thebigsale"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "Open Late"', "Open Late"),
        ('"Open" above "Closed"', "Open"),
        ('a sign "Mind the gap', None),
        ("a sign that says “Open Late”", "Open Late"),
        ("ein Schild mit „Offen“ darauf", "Offen"),
        ("ein Schild mit „Offen” darauf", "Offen"),
        ("une affiche «Ouvert» ici", "Ouvert"),
        ("一块写着「营业中」的牌子", "营业中"),
        ('a “vintage” sign saying "Hello"', "Hello"),  # straight ones first, as everywhere
        ("a sign: “the ‘best’ pie”", "the ‘best’ pie"),
        ('12" of pizza under “Hot”', "Hot"),
        ("the baker's sign says 'Bread'", None),
        ("no text at all", None),
        ("a closing ” only", None),
        ("“open only", None),
        ('a sign ""', ""),
        ("“open „first” «then» ", "open „first"),
        ("「open „first“ «then»", "first"),
        ("„a” “b“", "a"),
        ("»„", None),
        ("＂all the same＂ ＂", "all the same"),
    ],
)
def test_the_text_between_the_first_pair_of_double_quotes(prompt: str, text: str | None) -> None:
    assert quoted(prompt) == text


def record(prompt: str = "a sign", **meta: object) -> PromptRecord:
    return PromptRecord(prompt, "ocr", meta=meta)


def test_a_field_goes_before_the_prompt() -> None:
    assert target_of(record('a sign "Open"')) == "Open"
    assert target_of(record('a sign "Open"', text="Closed")) == "Closed"
    assert target_of(record('a sign "Open"', target="Closed", text="Ajar")) == "Closed"
    assert target_of(record(target='The "Best" Pie')) == 'The "Best" Pie'


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record("a sign"), "it has no text in double quotes, and no 'target'"),
        (record('a sign ""'), "there is nothing between its first pair of double quotes"),
        (record('a sign "  "'), "there is nothing between its first pair of double quotes"),
        (record(target=""), "its 'target' is ''; it should be a text"),
        (record(text=" "), "its 'text' is ' '; it should be a text"),
        (record('a sign "Open"', target=7), "its 'target' is 7; it should be a text"),
    ],
)
def test_a_prompt_without_a_text_is_refused(bad: PromptRecord, words: str) -> None:
    with pytest.raises(FlowOPDError, match=words):
        target_of(bad)


def by_trying(prompt: str) -> str | None:
    """From each opening mark in turn to the first that closes it."""
    parts = prompt.split('"')
    if len(parts) > 2:
        return parts[1]
    for start, mark in enumerate(prompt):
        for end in range(start + 1, len(prompt)):
            if prompt[end] in PAIRS.get(mark, ""):
                return prompt[start + 1 : end]
    return None


def test_quotation_marks_at_random() -> None:
    dice = random.Random(0)
    marks = "ab" + "".join(PAIRS) + "".join(PAIRS.values())
    for _ in range(2000):
        prompt = "".join(dice.choices(marks, k=dice.randrange(12)))
        assert quoted(prompt) == by_trying(prompt), prompt


def test_marks_that_nothing_closes_take_no_time() -> None:
    start = time.process_time()
    assert quoted("“«「" * 100_000) is None
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "given", [record(text="a\u0300\u0316" * 10_000), record(f'"{"a" * 2001}"')]
)
def test_texts_without_end_are_refused(given: PromptRecord) -> None:
    with pytest.raises(FlowOPDError, match="may have 2000"):
        target_of(given)
