"""Which steps of a rollout are trained on, and what each of them weighs."""

import math
from collections.abc import Sequence

import numpy as np

from flowopd.algorithms.settings import StepsConfig
from flowopd.errors import FlowOPDError

BETA = (5.0, 2.0)
"""The distribution over the rollout, from noise (0) to data (1), of `choose: beta`."""


def choose_steps(
    config: StepsConfig, eligible: Sequence[int], rng: np.random.Generator, update: int
) -> dict[int, float]:
    """The chosen steps with their weights, in order.

    The weighted sum of a step's quantity has the mean over all eligible steps for expectation
    (a window and `reweight: false` excepted: their weights are even).
    """
    check_count(config, len(eligible))
    n = len(eligible)
    if config.choose == "all":
        return dict.fromkeys(eligible, 1 / n)
    k = int(config.count or 0)
    if config.choose == "window":
        places = n - k + 1
        slid = None if config.slide_every is None else (update // config.slide_every) % places
        start = int(rng.integers(places)) if slid is None else slid
        return dict.fromkeys(eligible[start : start + k], 1 / k)
    if config.choose == "random":
        picked = sorted(rng.choice(n, size=k, replace=False).tolist())
        return {eligible[i]: 1 / k for i in picked}
    if config.choose == "stratified":
        return _stratified(eligible, k, rng)
    return _by_beta(eligible, k, rng, reweight=config.reweight)


def check_count(config: StepsConfig, eligible: int) -> None:
    if config.count is not None and config.count > eligible:
        raise FlowOPDError(
            f"steps.count is {config.count}, but only {eligible} steps of the rollout can be "
            "trained on; choose fewer, or more rollout.steps."
        )


def _stratified(eligible: Sequence[int], k: int, rng: np.random.Generator) -> dict[int, float]:
    """One step of each of k stretches of the rollout, weighed by the stretch's length."""
    chosen = {}
    for stretch in np.array_split(np.arange(len(eligible)), k):
        chosen[eligible[int(rng.choice(stretch))]] = len(stretch) / len(eligible)
    return chosen


def _by_beta(
    eligible: Sequence[int], k: int, rng: np.random.Generator, *, reweight: bool
) -> dict[int, float]:
    """k independent draws; a step that is drawn twice counts twice."""
    shares = beta_shares(len(eligible))
    draws = rng.choice(len(eligible), size=k, p=shares)
    chosen: dict[int, float] = {}
    for i in sorted(draws.tolist()):
        weight = 1 / (k * len(eligible) * shares[i]) if reweight else 1 / k
        chosen[eligible[i]] = chosen.get(eligible[i], 0.0) + float(weight)
    return chosen


def beta_shares(n: int) -> np.ndarray:
    """The chance of each of n steps from noise to data: Beta(5, 2) over n equal bins."""
    from scipy.special import betainc

    shares = np.diff(betainc(*BETA, np.linspace(0, 1, n + 1)))
    return shares / math.fsum(shares)
