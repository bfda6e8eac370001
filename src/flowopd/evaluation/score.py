"""Images to lines of scores: every scorer on the records that it reads, and nothing made up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import reads
from flowopd.rewards.scorer import MetricInfo, Scorer, Scores
from flowopd.rewards.work.calls import Call, Failed, call_now
from flowopd.tasks.prompts import PromptRecord

Images = NDArray[np.uint8]
Begin = Callable[[Scorer, Images, Sequence[PromptRecord]], Call]
"""Begins a call of a scorer: `call_now`, or a jury's."""
Entry = dict[str, Any]
"""What the scorers read off one image: scores, reasons, detail."""


@dataclass(frozen=True)
class Begun:
    """Calls that are under way, each with the places of its images."""

    records: Sequence[PromptRecord]
    calls: Sequence[tuple[Scorer, Sequence[int], Call]]
    tolerant: bool

    def result(self) -> list[Entry]:
        """An entry for each image. What a scorer could not do is refused; or, if that is
        tolerated, a missing value with its reason."""
        found: list[Entry] = [{"scores": {}, "reasons": {}, "detail": {}} for _ in self.records]
        for scorer, places, call in self.calls:
            for index, score in zip(places, call.result(), strict=True):
                if isinstance(score, Failed) and not self.tolerant:
                    raise _failure(scorer, score, self.records[index])
                _add(found[index], scorer, score, tolerant=self.tolerant)
        return found


def begin_scoring(
    scorers: Sequence[Scorer],
    images: Images,
    records: Sequence[PromptRecord],
    counts: Sequence[int],
    prompts: Sequence[int],
    *,
    begin: Begin = call_now,
    tolerant: bool = False,
) -> Begun:
    """Begin every call that the images need.

    ``counts`` says how many images the record of each image has, ``prompts`` which images belong
    together: a grouped scorer sees those of one prompt at a time.
    """
    calls = []
    for scorer in scorers:
        pairs = enumerate(zip(records, counts, strict=True))
        chosen = [index for index, (record, count) in pairs if reads(scorer, record, count)]
        for together in _calls(scorer, chosen, prompts):
            call = begin(scorer, images[together], [records[index] for index in together])
            calls.append((scorer, together, call))
    return Begun(records, calls, tolerant)


def _calls(scorer: Scorer, chosen: list[int], prompts: Sequence[int]) -> list[list[int]]:
    """The images of each call of the scorer."""
    if not scorer.grouped:
        return [chosen] if chosen else []
    groups: dict[int, list[int]] = {}
    for index in chosen:
        groups.setdefault(prompts[index], []).append(index)
    return list(groups.values())


def _failure(scorer: Scorer, score: Failed, record: PromptRecord) -> FlowOPDError:
    reason = next(iter(score.reasons.values()), "no reason given").rstrip(".")
    return FlowOPDError(
        f"The scorer {scorer.name!r} failed on an image of the prompt {record.prompt!r}: {reason}. "
        "What was scored until now is kept; the same command goes on from there."
    )


def _add(entry: Entry, scorer: Scorer, score: Scores, *, tolerant: bool) -> None:
    for info in scorer.metrics:
        value = score.values.get(info.name)
        reason = score.reasons.get(info.name, "the scorer gave none")
        if value is not None and not _possible(info, value):
            problem = _impossible(scorer, info, value)
            if not tolerant:
                raise FlowOPDError(problem)
            value, reason = None, problem
        if value is None:
            entry["reasons"][info.name] = reason
        entry["scores"][info.name] = None if value is None else _within(info, value)
    if score.detail:
        entry["detail"][scorer.name] = score.detail


def _bounds(info: MetricInfo) -> tuple[float, float]:
    low = -math.inf if info.low is None else info.low
    return low, math.inf if info.high is None else info.high


def _possible(info: MetricInfo, value: float) -> bool:
    low, high = _bounds(info)
    slack = 1e-6 * max(1.0, abs(value))
    return math.isfinite(value) and low - slack <= value <= high + slack


def _within(info: MetricInfo, value: float) -> float:
    low, high = _bounds(info)
    return min(max(float(value), low), high)


def _impossible(scorer: Scorer, info: MetricInfo, value: float) -> str:
    low, high = _bounds(info)
    return (
        f"The scorer {scorer.name!r} gave {value} as {info.name!r}, which has to lie in "
        f"[{low}, {high}]; a value that cannot be read has to be None, with a reason."
    )
