"""The text that a prompt asks for, and how near to it is what was read."""

import unicodedata

from rapidfuzz.distance import Levenshtein

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord

FIELDS = ("target", "text")
STRAIGHT = '"'
PAIRS = {"“": "”", "„": "“”", "«": "»", "「": "」", "『": "』", "＂": "＂"}


def target_of(record: PromptRecord) -> str:
    """The record's ``target`` or ``text``, or else what its prompt has in double quotes."""
    for field in FIELDS:
        if field in record.meta:
            target = record.meta[field]
            if not isinstance(target, str) or not plain(target):
                raise FlowOPDError(f"its {field!r} is {target!r}; it should be a text.")
            return target
    target = quoted(record.prompt)
    if target is None:
        raise FlowOPDError(
            "it has no text in double quotes, and no 'target' that says what should be written."
        )
    if not plain(target):
        raise FlowOPDError("there is nothing between its first pair of double quotes.")
    return target


def quoted(prompt: str) -> str | None:
    """What is between the first pair of straight quotes or, without such, of typographic ones."""
    parts = prompt.split(STRAIGHT)
    if len(parts) > 2:
        return parts[1]
    starts = [place for place, mark in enumerate(prompt) if mark in PAIRS]
    for start in starts:
        closing = PAIRS[prompt[start]]
        ends = (i for i in range(start + 1, len(prompt)) if prompt[i] in closing)
        end = next(ends, None)
        if end is not None:
            return prompt[start + 1 : end]
    return None


def plain(text: str) -> str:
    """As texts are compared: lower case, without spaces, letters and accents put together."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


def ocr_score(read: str, target: str) -> float:
    """1 if the target is contained in what was read, else 1 - d / len(target).

    d is the edit distance, at most len(target).
    """
    read, target = plain(read), plain(target)
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
