"""The mean of several metrics, each on its own scale, with a 95% interval.

A prompt counts for several metrics at once, so that their means are not independent. The variance
is that of the prompts' summed influences: what the average would move by if a prompt had more
weight. For one metric without strata this is the clustered variance of `intervals`. Where all
values are at one bound nothing varies, and the distances to Wilson's limits are added as squares.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from flowopd.evaluation.intervals import CONFIDENCE, Bounds, Interval, interval
from flowopd.evaluation.score_file import Line
from flowopd.rewards.scorer import MetricInfo


class Term(NamedTuple):
    """A metric, and what it is divided by to be averaged with others."""

    info: MetricInfo
    divisor: float


class Part(NamedTuple):
    """A metric's mean, and what each prompt adds to its deviation."""

    mean: float
    influences: Mapping[int, float]
    freedom: int
    """Prompts, less one for each mean; 0 when a mean is over one prompt and nothing is known."""
    below: float = 0.0
    above: float = 0.0
    """How far the limits of what does not vary are from the mean."""


def average(terms: Sequence[Term], lines: Sequence[Line]) -> Interval:
    """The mean over terms of metric / divisor. Not known when a metric is not."""
    names = [term.info.name for term in terms]
    count = sum(any(line["scores"].get(name) is not None for name in names) for line in lines)
    parts = [metric_part(term.info, lines) for term in terms]
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts):
        return Interval(None, None, None, count)
    weights = [1 / (len(terms) * term.divisor) for term in terms]
    mean = sum(weight * part.mean for weight, part in zip(weights, known, strict=True))
    together: dict[int, float] = defaultdict(float)
    for weight, part in zip(weights, known, strict=True):
        for prompt, influence in part.influences.items():
            together[prompt] += weight * influence
    low, high = _bounds(terms, weights)
    freedom = min(part.freedom for part in known)
    if freedom < 1:
        return Interval(mean, low, high, count)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.hypot(*together.values())
    pairs = list(zip(weights, known, strict=True))
    below = math.hypot(half, *(weight * part.below for weight, part in pairs))
    above = math.hypot(half, *(weight * part.above for weight, part in pairs))
    return Interval(
        mean,
        mean - below if low is None else max(mean - below, low),
        mean + above if high is None else min(mean + above, high),
        count,
    )


def average_entry(terms: Sequence[Term], lines: Sequence[Line]) -> dict[str, Any]:
    """The average as an entry among a row's metrics."""
    names = [term.info.name for term in terms]
    missing = sum(line["scores"].get(name, 0) is None for line in lines for name in names)
    return {**average(terms, lines)._asdict(), "missing": missing}


def metric_part(info: MetricInfo, lines: Sequence[Line]) -> Part | None:
    """The metric's mean over images, or over its tags' means; None when it is not known."""
    scored = [line for line in lines if info.name in line["scores"]]
    tags = sorted({line["tag"] for line in scored}) if info.strata else [""]
    groups = [[line for line in scored if not info.strata or line["tag"] == tag] for tag in tags]
    parts = [_mean_part(info, group) for group in groups]
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts):
        return None
    influences: dict[int, float] = defaultdict(float)
    for part in known:
        for prompt, influence in part.influences.items():
            influences[prompt] += influence / len(known)
    single = any(part.freedom < 1 for part in known)
    freedom = 0 if single else sum(part.freedom for part in known)
    return Part(
        sum(part.mean for part in known) / len(known),
        influences,
        freedom,
        math.hypot(*(part.below for part in known)) / len(known),
        math.hypot(*(part.above for part in known)) / len(known),
    )


def _mean_part(info: MetricInfo, lines: Sequence[Line]) -> Part | None:
    """sqrt(n/(n-1)) (s_p - k_p mean) / K for a prompt with k_p images of K, whose sum is s_p."""
    values: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if line["scores"][info.name] is not None:
            values[line["prompt_index"]].append(line["scores"][info.name])
    total = sum(map(len, values.values()))
    if not total:
        return None
    mean = sum(map(sum, values.values())) / total
    prompts = len(values)
    scale = math.sqrt(prompts / (prompts - 1)) if prompts > 1 else 0.0
    influences = {
        prompt: scale * (sum(own) - len(own) * mean) / total for prompt, own in values.items()
    }
    if any(influences.values()):
        return Part(mean, influences, prompts - 1)
    clusters = [prompt for prompt, own in values.items() for _ in own]
    found = interval(list(chain(*values.values())), clusters, Bounds(info.low, info.high))
    below = 0.0 if found.low is None else mean - found.low
    above = 0.0 if found.high is None else found.high - mean
    return Part(mean, influences, prompts - 1, below, above)


def _bounds(terms: Sequence[Term], weights: Sequence[float]) -> tuple[float | None, float | None]:
    """The range of the average, where every metric has one."""
    lows = [w * t.info.low for w, t in zip(weights, terms, strict=True) if t.info.low is not None]
    highs = [
        w * t.info.high for w, t in zip(weights, terms, strict=True) if t.info.high is not None
    ]
    return (
        sum(lows) if len(lows) == len(terms) else None,
        sum(highs) if len(highs) == len(terms) else None,
    )
