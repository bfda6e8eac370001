"""The average of metrics and its interval: by hand, against `intervals`, against a bootstrap."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from flowopd.evaluation.average import Term, average, average_entry, metric_part
from flowopd.evaluation.intervals import Bounds, interval
from flowopd.rewards.scorer import MetricInfo

SKILL, TASTE = MetricInfo("skill"), MetricInfo("taste", 1, 5)
TAGGED = MetricInfo("tagged", 0, 1, strata=True)


def line(prompt: int, tag: str = "", **scores: float | None) -> dict[str, Any]:
    return {"prompt_index": prompt, "tag": tag, "scores": scores}


def test_by_hand() -> None:
    """skill: 0.2, 0.6 (two prompts); taste: 2, 4 and 3, 5; the first divided by 1, the other by 5.

    Means 0.4 and 3.5, average (0.4 + 0.7) / 2 = 0.55. Influences on the means, times sqrt(2):
    skill ∓0.1; taste (2+4 - 2·3.5)/4 = -0.25 and +0.25. On the average: ∓(0.1/2 + 0.25/10) = 0.075.
    Variance 2 · 2 · 0.075² = 0.0225, one degree of freedom.
    """
    lines = [
        line(0, skill=0.2, taste=2.0),
        line(0, taste=4.0),
        line(1, skill=0.6, taste=3.0),
        line(1, taste=5.0),
    ]
    found = average([Term(SKILL, 1), Term(TASTE, 5)], lines)
    half = float(t.ppf(0.975, 1)) * 0.15
    assert found.mean == pytest.approx(0.55)
    assert found.low == pytest.approx(0.55 - half)
    assert found.high == pytest.approx(0.55 + half)
    assert found.n == 4


def test_strata_by_hand() -> None:
    """Tags a: 0, 1, 1 and b: 0, 1: means 2/3 and 1/2, the metric 7/12; the two variances apart."""
    lines = [
        *(line(i, "a", tagged=value) for i, value in enumerate((0.0, 1.0, 1.0))),
        *(line(3 + i, "b", tagged=value) for i, value in enumerate((0.0, 1.0))),
    ]
    found = average([Term(TAGGED, 2)], lines)
    variance_a = (4 / 9 + 1 / 9 + 1 / 9) / 2 / 3  # s²/n
    variance_b = (1 / 4 + 1 / 4) / 1 / 2
    half = float(t.ppf(0.975, 3)) * math.sqrt((variance_a + variance_b) / 4) / 2
    assert found.mean == pytest.approx(7 / 24)
    assert found.low == pytest.approx(max(7 / 24 - half, 0))
    assert found.high == pytest.approx(min(7 / 24 + half, 1 / 2))


def test_one_metric_has_its_own_interval() -> None:
    rng = np.random.default_rng(0)
    clusters = [int(i) for i in rng.integers(0, 40, 100)]
    values = [float(v) for v in rng.normal(size=100)]
    lines = [line(c, skill=v) for c, v in zip(clusters, values, strict=True)]
    assert average([Term(SKILL, 1)], lines) == pytest.approx(
        interval(values, clusters, Bounds(None, None))
    )


def test_metrics_of_other_prompts_are_independent() -> None:
    rng = np.random.default_rng(1)
    lines = [line(i, skill=float(rng.normal())) for i in range(50)]
    lines += [line(50 + i, taste=float(rng.uniform(1, 5))) for i in range(70)]
    both = average([Term(SKILL, 1), Term(TASTE, 5)], lines)
    parts = [metric_part(info, lines) for info in (SKILL, TASTE)]
    spreads = [math.hypot(*part.influences.values()) for part in parts if part]
    expected = float(t.ppf(0.975, 49)) * math.hypot(spreads[0], spreads[1] / 5) / 2
    assert both.mean is not None
    assert both.high is not None
    assert both.high - both.mean == pytest.approx(expected)


def study(rng: np.random.Generator, prompts: int) -> list[dict[str, Any]]:
    """Two images a prompt; three metrics that share what is hard about a prompt."""
    lines = []
    for prompt in range(prompts):
        hard, tag = rng.normal(), "abc"[prompt % 3]
        for _ in range(2):
            scores = {
                "skill": float(hard + rng.normal() * 0.3),
                "taste": float(np.clip(3 + hard + rng.normal(), 1, 5)),
            }
            if prompt % 2 == 0:
                scores["tagged"] = float(hard + rng.normal() > {"a": 0.5, "b": 0, "c": -1}[tag])
            lines.append(line(prompt, tag, **scores))
    return lines


TERMS = [Term(SKILL, 1), Term(TASTE, 5), Term(TAGGED, 1)]


def test_the_width_is_the_bootstraps() -> None:
    rng = np.random.default_rng(2)
    lines = study(rng, 240)
    found = average(TERMS, lines)
    by_prompt = [[one for one in lines if one["prompt_index"] == p] for p in range(240)]
    strata = [[p for p in range(240) if (p % 3, p % 2) == (a, b)] for a in range(3) for b in (0, 1)]
    means = []
    for _ in range(400):
        drawn = [int(p) for group in strata for p in rng.choice(group, len(group))]
        again = [
            {**one, "prompt_index": number}
            for number, prompt in enumerate(drawn)
            for one in by_prompt[prompt]
        ]
        means.append(sum(part.mean / term.divisor for term, part in _parts(again)) / 3)
    assert found.low is not None
    assert found.high is not None
    width = (found.high - found.low) / 2
    assert width == pytest.approx(float(t.ppf(0.975, 117)) * np.std(means), rel=0.1)


def _parts(lines: list[dict[str, Any]]) -> list[tuple[Term, Any]]:
    return [(term, metric_part(term.info, lines)) for term in TERMS]


def test_it_covers_the_truth() -> None:
    """95% of intervals; the truth of each metric from a sample a hundred times as large."""
    truth = average(TERMS, study(np.random.default_rng(3), 8_000)).mean
    assert truth is not None
    inside = 0
    for seed in range(200):
        found = average(TERMS, study(np.random.default_rng(100 + seed), 60))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert 183 <= inside <= 198


def test_what_is_always_right_is_not_certain() -> None:
    """Ten of ten: Wilson's lower limit; beside another metric its distance is added as a square."""
    right = MetricInfo("right", 0, 1)
    lines = [line(i, right=1.0, skill=float(i % 2)) for i in range(10)]
    alone = average([Term(right, 1)], lines)
    assert alone == pytest.approx(interval([1.0] * 10, range(10), Bounds(0, 1)))
    assert alone.low is not None
    assert alone.low < 0.9
    skill = average([Term(SKILL, 1)], lines)
    both = average([Term(right, 1), Term(SKILL, 1)], lines)
    assert both.low is not None
    assert both.high is not None
    assert both.mean == pytest.approx(0.75)
    below, half = 1 - alone.low, 0.5 - (skill.low or 0)
    assert 0.75 - both.low == pytest.approx(math.hypot(below, half) / 2)
    assert both.high - 0.75 == pytest.approx(half / 2)


def test_missing_values() -> None:
    lines = [line(0, skill=1.0, taste=None), line(1, skill=None, taste=3.0), line(2, skill=2.0)]
    entry = average_entry([Term(SKILL, 1), Term(TASTE, 5)], lines)
    assert entry["mean"] == pytest.approx((1.5 + 0.6) / 2)
    assert (entry["n"], entry["missing"]) == (3, 2)
    assert (entry["low"], entry["high"]) == (None, None)  # taste is known of one prompt only
    only = average_entry([Term(TASTE, 5)], lines)
    assert (only["low"], only["high"]) == (0.2, 1.0)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [line(0, skill=1.0)],
        [line(0, skill=1.0, taste=None)],
        [line(0, "a", skill=1.0, tagged=None), line(1, "b", tagged=1.0, taste=3.0)],
    ],
)
def test_it_is_not_known_when_a_metric_is_not(lines: list[dict[str, Any]]) -> None:
    found = average([Term(SKILL, 1), Term(TASTE, 5), Term(TAGGED, 1)], lines)
    assert (found.mean, found.low, found.high) == (None, None, None)


def test_images_of_seeds_are_one_cluster() -> None:
    """The same scores under three seeds tell no more than under one."""
    one = study(np.random.default_rng(4), 30)
    first, three = average(TERMS, one), average(TERMS, one * 3)
    assert three.n == 3 * first.n
    assert (three.mean, three.low, three.high) == pytest.approx((first.mean, first.low, first.high))
