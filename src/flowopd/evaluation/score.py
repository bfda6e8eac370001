"""Images to lines of scores: every scorer on the records that it reads, and nothing made up."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import reads
from flowopd.rewards.scorer import MetricInfo, Scorer, Scores
from flowopd.tasks.prompts import PromptRecord

Images = NDArray[np.uint8]


def score_images(
    scorers: Sequence[Scorer],
    images: Images,
    records: Sequence[PromptRecord],
    counts: Sequence[int],
    prompts: Sequence[int],
) -> list[dict[str, Any]]:
    """For each image, what the scorers of its record read: scores, reasons, detail.

    ``counts`` says how many images the record of each image has, ``prompts`` which images belong
    together: a grouped scorer sees those of one prompt at a time.
    """
    found: list[dict[str, Any]] = [{"scores": {}, "reasons": {}, "detail": {}} for _ in records]
    for scorer in scorers:
        pairs = enumerate(zip(records, counts, strict=True))
        chosen = [index for index, (record, count) in pairs if reads(scorer, record, count)]
        for together in _calls(scorer, chosen, prompts):
            scores = scorer.score(images[together], [records[index] for index in together])
            if len(scores) != len(together):
                raise FlowOPDError(
                    f"The scorer {scorer.name!r} gave {len(scores)} results for {len(together)} "
                    "images."
                )
            for index, score in zip(together, scores, strict=True):
                _add(found[index], scorer, score)
    return found


def _calls(scorer: Scorer, chosen: list[int], prompts: Sequence[int]) -> list[list[int]]:
    """The images of each call of the scorer."""
    if not scorer.grouped:
        return [chosen] if chosen else []
    groups: dict[int, list[int]] = {}
    for index in chosen:
        groups.setdefault(prompts[index], []).append(index)
    return list(groups.values())


def _add(entry: dict[str, Any], scorer: Scorer, score: Scores) -> None:
    for info in scorer.metrics:
        value = score.values.get(info.name)
        entry["scores"][info.name] = None if value is None else _checked(scorer, info, value)
        if value is None:
            entry["reasons"][info.name] = score.reasons.get(info.name, "the scorer gave none")
    if score.detail:
        entry["detail"][scorer.name] = score.detail


def _checked(scorer: Scorer, info: MetricInfo, value: float) -> float:
    low = -math.inf if info.low is None else info.low
    high = math.inf if info.high is None else info.high
    slack = 1e-6 * max(1.0, abs(value))
    if not math.isfinite(value) or not low - slack <= value <= high + slack:
        raise FlowOPDError(
            f"The scorer {scorer.name!r} gave {value} as {info.name!r}, which has to lie in "
            f"[{low}, {high}]; a value that cannot be read has to be None, with a reason."
        )
    return min(max(float(value), low), high)
