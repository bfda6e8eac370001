"""A call of a scorer, from which something always comes back: scores, or why there are none."""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scorer, Scores, UnavailableError
from flowopd.tasks.prompts import PromptRecord

Images = NDArray[np.uint8]
Unit = tuple[int, ...]
"""The pictures, by their place in the call, that have to be scored together."""
AGAIN = 2
"""How often a call is made again after an error that may be gone the next time."""
PAUSE = 0.5
"""Seconds before the first of these; twice as many before each further one."""
LONGEST = 300


@dataclass(frozen=True)
class Failed(Scores):
    """What stands for the scores of a picture when the scorer failed: no value, and the reason."""


class Call(Protocol):
    """A call that was begun."""

    def result(self) -> list[Scores]:
        """The scores, as soon as they are there; never an exception of the scorer's."""
        ...


@dataclass(frozen=True)
class Made:
    """A call that was made at once."""

    scores: list[Scores]

    def result(self) -> list[Scores]:
        return self.scores


def call_now(scorer: Scorer, images: Images, records: Sequence[PromptRecord]) -> Made:
    """A call in this thread, without a limit to its time."""
    return Made(attempt(scorer, images, records))


def failures(scorer: Scorer, count: int, reason: str) -> list[Scores]:
    names = [info.name for info in scorer.metrics]
    return [Failed(dict.fromkeys(names), dict.fromkeys(names, reason)) for _ in range(count)]


def attempt(scorer: Scorer, images: Images, records: Sequence[PromptRecord]) -> list[Scores]:
    """The scores of the images, without those that make the scorer raise.

    What raises is halved until the pictures are found that it is about; the pictures of a prompt
    stay together if the scorer compares them. An UnavailableError is about none of them: all that
    have no scores yet are missing, and no more is asked.
    """
    parts = units(records, scorer.grouped)
    found: dict[int, Scores] = {}
    waiting = [parts]
    while waiting:
        some = waiting.pop()
        chosen = [index for unit in some for index in unit]
        try:
            scores = _scored(scorer, images[chosen], [records[i] for i in chosen])
        except UnavailableError as error:
            rest = [i for i in range(len(records)) if i not in found]
            found.update(zip(rest, failures(scorer, len(rest), in_words(error)), strict=True))
            break
        if not isinstance(scores, str):
            found.update(zip(chosen, scores, strict=True))
        elif len(some) == 1:
            found.update(zip(chosen, failures(scorer, len(chosen), scores), strict=True))
        else:
            waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
    return [found[i] for i in range(len(records))]


def in_words(error: BaseException) -> str:
    """An exception in one line; of ours, its sentence alone."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    said = f"{kind}: {text}" if text else kind
    if text and isinstance(error, FlowOPDError):
        said = text
    return said if len(said) <= LONGEST else said[: LONGEST - 3] + "..."


def units(records: Sequence[PromptRecord], grouped: bool) -> list[Unit]:
    """The smallest parts of a call: pictures, or those of a prompt where they are compared."""
    if not grouped:
        return [(index,) for index in range(len(records))]
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.prompt, []).append(index)
    return [tuple(group) for group in groups.values()]


def _scored(scorer: Scorer, images: Images, records: Sequence[PromptRecord]) -> list[Scores] | str:
    """The scores, or why there are none; an UnavailableError passes through."""
    for number in range(AGAIN + 1):
        try:
            with _without_gradients():
                scores = list(scorer.score(images, records))
        except Exception as error:  # a scorer is anybody's code: what it raises is its answer
            if number < AGAIN and _transient(scorer, error):
                time.sleep(PAUSE * 2**number)
                continue
            if isinstance(error, UnavailableError):
                raise
            return in_words(error)
        if len(scores) != len(records):
            return f"it gave {len(scores)} results for {len(records)} images"
        return scores
    raise AssertionError("unreachable")


def _transient(scorer: Scorer, error: Exception) -> bool:
    transient = getattr(scorer, "transient", None)
    return bool(transient is not None and transient(error))


def _without_gradients() -> AbstractContextManager[Any]:
    """Threads begin with gradients on, whatever the one that asks has."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()
