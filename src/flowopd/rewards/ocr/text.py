"""The text that a prompt asks for, and how near to it is what was read."""

import unicodedata

from rapidfuzz.distance import Levenshtein

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord

FIELDS = ("target", "text")
LONGEST = 2000
"""Characters that may be asked for; no picture has as many."""
STRAIGHT = '"'
PAIRS = {"“": "”", "„": "“”", "«": "»", "「": "」", "『": "』", "＂": "＂"}


def target_of(record: PromptRecord) -> str:
    """The record's ``target`` or ``text``, or else what its prompt has in double quotes."""
    for field in FIELDS:
        if field in record.meta:
            target = record.meta[field]
            if not isinstance(target, str) or not _is_text(target):
                raise FlowOPDError(f"its {field!r} is {target!r}; it should be a text.")
            return target
    target = quoted(record.prompt)
    if target is None:
        raise FlowOPDError(
            "it has no text in double quotes, and no 'target' that says what should be written."
        )
    if not _is_text(target):
        raise FlowOPDError("there is nothing between its first pair of double quotes.")
    return target


def _is_text(target: str) -> bool:
    """Whether anything is left of it as texts are compared; refused if it is endless."""
    if len(target) > LONGEST:
        raise FlowOPDError(
            f"the text to be written has {len(target)} characters, and may have {LONGEST}."
        )
    return bool(plain(target))


def quoted(prompt: str) -> str | None:
    """What is between the first pair of straight quotes or, without such, of typographic ones."""
    parts = prompt.split(STRAIGHT)
    if len(parts) > 2:
        return parts[1]
    last = {mark: prompt.rfind(mark) for closing in PAIRS.values() for mark in closing}
    for start, mark in enumerate(prompt):
        closing = PAIRS.get(mark, "")
        if any(last[end] > start for end in closing):
            ends = (prompt.find(end, start + 1) for end in closing)
            return prompt[start + 1 : min(end for end in ends if end >= 0)]
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
