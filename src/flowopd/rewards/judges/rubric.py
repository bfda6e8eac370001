"""Rubrics: what a judge is asked, in a file of its own, and how its score is read."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, FiniteFloat, model_validator

from flowopd.config import Config, build
from flowopd.errors import FlowOPDError

CAPTION = "{caption}"
THOUGHT = r"[<\[◁]{}think(?:ing)?[>\]▷]"
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
CLOSING = r"[*_)\]}\"'`”’ \t\r\xa0]*+"
HIGHEST = rf"(?:{CLOSING}\(?(?:/|\bout of\b)[*_ ]*{NUMBER})?"
TAGS = r"(?:</\w+>\s*?|<\|\w+\|>\s*?)*"
VALUE = re.compile(
    rf"[*_\s\[({{\"'`“‘]*(-?){NUMBER}{HIGHEST}{CLOSING}\.?{CLOSING}{TAGS}$",
    re.MULTILINE | re.IGNORECASE,
)
"""A number, perhaps with the highest that it could be, and nothing but closing marks behind it in
its line: `4.5`, `**4**/5`, `4 out of 5.`; and not `4 or 5`, `4,5`, `4%`, `4 maybe`."""
EXCERPT = 40


class Head(Config):
    """The first lines of a rubric's file, between two lines of ---."""

    version: int = Field(ge=1)
    """Counts up when the text changes, as the numbers do with it."""
    score: str = Field(min_length=1)
    """What stands before the score in a reply."""
    others: tuple[str, ...] = ()
    """What stands before numbers that are kept beside it."""
    low: FiniteFloat
    high: FiniteFloat
    scale: FiniteFloat | None = Field(None, gt=0)
    """What a reward divides the score by, if it says nothing else; left out: `high`."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"its low, {self.low:g}, should be less than its high, {self.high:g}")
        if self.scale is None and self.high <= 0:
            raise ValueError("it should say its scale, for its high is not more than 0")
        return self


class Rubric:
    """A question with a place for the caption, and the reading of its answers."""

    def __init__(self, head: Head, text: str) -> None:
        self.version, self.low, self.high = head.version, head.low, head.high
        self.scale = head.high if head.scale is None else head.scale
        self._label, self._others, self._text = head.score, head.others, text

    def question(self, caption: str) -> str:
        return self._text.replace(CAPTION, caption)

    def score(self, reply: str) -> float:
        """The score in a reply, its last if it has several; a FlowOPDError says why there is none.

        What the judge thought aloud before it answered does not count.
        """
        return self._number(self._label, reply)

    def others(self, reply: str) -> Mapping[str, float]:
        """The other numbers that the rubric asks for, as far as the reply has them."""
        found = {}
        for label in self._others:
            try:
                found[label.lower()] = self._number(label, reply)
            except FlowOPDError:
                continue
        return found

    def _number(self, label: str, reply: str) -> float:
        begin = rf"(?<![\w-]){re.escape(label)}[*_\s\"'`)]*[:=：]"
        said = _spoken(reply)
        ends = [found.end() for found in re.finditer(begin, said, re.IGNORECASE)]
        if not ends:
            raise FlowOPDError(f"the reply has no '{label}: x'")
        found = VALUE.match(said, ends[-1])
        if found is None:
            line = said[ends[-1] :].strip().partition("\n")[0][:EXCERPT]
            raise FlowOPDError(f"the reply's {label} is {line!r}, which is no single number")
        number, of = found[1] + found[2], found[3]
        if of and float(of) != self.high:
            raise FlowOPDError(f"the reply's {label} is out of {of}, and not out of {self.high:g}")
        if not self.low <= float(number) <= self.high:
            raise FlowOPDError(
                f"the reply's {label} is {number}, and not from {self.low:g} to {self.high:g}"
            )
        return float(number)


def _spoken(reply: str) -> str:
    """What was not only thought. The beginning of a thought may stand in the chat template, and
    not in the reply."""
    after = re.split(THOUGHT.format("/"), reply, flags=re.IGNORECASE)[-1]
    return re.split(THOUGHT.format(""), after, flags=re.IGNORECASE)[0]


def own_rubric(name: str) -> Rubric:
    """One that comes with the package."""
    text = files("flowopd.rewards.judges").joinpath("rubrics", f"{name}.md").read_text("utf-8")
    return _rubric(text, f"the rubric {name}")


def read_rubric(path: Path) -> Rubric:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowOPDError(f"The rubric {path} cannot be read: {error}.") from None
    return _rubric(text, f"the rubric {path}")


def _rubric(content: str, where: str) -> Rubric:
    mark, _, rest = content.partition("---\n")
    head, found, text = rest.partition("\n---\n")
    if mark.strip() or not found:
        raise FlowOPDError(
            f"{where} should begin with a line of ---, keys and values, and another line of ---."
        )
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise FlowOPDError(f"{where}: its head is no YAML: {error}.") from None
    if CAPTION not in text:
        raise FlowOPDError(f"{where} has no {CAPTION}, where the picture's prompt goes.")
    return Rubric(build(Head, data, where=where), text.strip())
