"""95% intervals of a metric's mean.

The unit that is drawn at random is the prompt: several images of one prompt are a cluster, and
count for less than as many prompts would (cluster-robust variance). Values that are all at a
bound or the other (right or wrong) get Wilson's interval, which has a width even when all of them
are right; others get Student's, cut at the metric's bounds. A mean over strata combines their
intervals by square-and-add (MOVER: Zou & Donner, 2008), which keeps their asymmetry.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = 1.959963984540054
FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its interval. None: not known (no value; one prompt of an unbounded metric)."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class Bounds(NamedTuple):
    """The range of a metric; None: unbounded."""

    low: float | None
    high: float | None


def interval(values: Sequence[float], clusters: Sequence[int], bounds: Bounds) -> Interval:
    """The mean of values whose prompts are ``clusters``, with its 95% interval."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values of {len(clusters)} clusters")
    if not values:
        return Interval(None, None, None, 0)
    x = np.asarray(values, dtype=np.float64)
    sums, sizes = _cluster_sums(x, clusters)
    if bounds.low is not None and bounds.high is not None and _binary(x, bounds.low, bounds.high):
        span = bounds.high - bounds.low
        share = float((x.mean() - bounds.low) / span)
        low, high = wilson(share, effective_size(sums, sizes, bounds.low, span))
        return Interval(float(x.mean()), bounds.low + low * span, bounds.low + high * span, x.size)
    return _student(x, sums, sizes, bounds)


def stratified(strata: Mapping[str, Interval]) -> Interval:
    """The mean of the strata's means. Not known when it is unknown of any stratum.

    Square-and-add: each limit's distance from the mean is the root of the summed squares of the
    strata's own distances on that side, over their number.
    """
    parts = list(strata.values())
    count = sum(part.n for part in parts)
    means = [part.mean for part in parts if part.mean is not None]
    if not parts or len(means) < len(parts):
        return Interval(None, None, None, count)
    mean = sum(means) / len(parts)
    below = [m - part.low for m, part in zip(means, parts, strict=True) if part.low is not None]
    above = [part.high - m for m, part in zip(means, parts, strict=True) if part.high is not None]
    low = mean - math.hypot(*below) / len(parts) if len(below) == len(parts) else None
    high = mean + math.hypot(*above) / len(parts) if len(above) == len(parts) else None
    return Interval(mean, low, high, count)


def wilson(share: float, size: float) -> tuple[float, float]:
    """Wilson's score interval of a share among ``size`` independent draws."""
    spread = Z * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    centre, scale = share + Z**2 / (2 * size), 1 + Z**2 / size
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return (0.0 if share == 0 else max(low, 0.0)), (1.0 if share == 1 else min(high, 1.0))


def effective_size(sums: FloatArray, sizes: FloatArray, low: float, span: float) -> float:
    """How many independent right-or-wrong values the clusters are worth.

    The images, over the ratio of the clustered variance to a binomial one. It lies between the
    size for images of a prompt that always agree (also taken when all agree everywhere, for then
    nothing is known about it) and the number of images.
    """
    total = sizes.sum()
    agreeing = float(total**2 / (sizes**2).sum())
    share = (sums.sum() / total - low) / span
    binomial = share * (1 - share) / total
    if binomial <= 0 or sizes.size < 2:
        return agreeing
    ratio = _clustered_variance((sums - low * sizes) / span, sizes) / binomial
    return float(min(max(total / ratio if ratio > 0 else total, agreeing), total))


def _student(x: FloatArray, sums: FloatArray, sizes: FloatArray, bounds: Bounds) -> Interval:
    mean = float(x.mean())
    if sizes.size < 2:
        return Interval(mean, bounds.low, bounds.high, x.size)
    from scipy.stats import t

    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, sizes.size - 1))
    half = quantile * math.sqrt(_clustered_variance(sums, sizes))
    low = mean - half if bounds.low is None else max(mean - half, bounds.low)
    high = mean + half if bounds.high is None else min(mean + half, bounds.high)
    return Interval(mean, low, high, x.size)


def _clustered_variance(sums: FloatArray, sizes: FloatArray) -> float:
    """The variance of the mean over all values; with clusters of one it is s²/n."""
    clusters, total = sizes.size, sizes.sum()
    residuals = sums - sizes * (sums.sum() / total)
    return float(clusters / (clusters - 1) * (residuals**2).sum() / total**2)


def _cluster_sums(x: FloatArray, clusters: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(inverse, weights=x).astype(np.float64)
    return sums, np.bincount(inverse).astype(np.float64)


def _binary(x: FloatArray, low: float, high: float) -> bool:
    return bool(np.all((x == low) | (x == high)))
