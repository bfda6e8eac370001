import math

import numpy as np
import pytest

from flowopd.evaluation.intervals import Bounds, Interval, interval, stratified, wilson

UNIT = Bounds(0, 1)
OPEN = Bounds(None, None)


def test_wilson_by_hand() -> None:
    """Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)


def test_right_or_wrong_one_image_a_prompt() -> None:
    values = [1.0] * 81 + [0.0] * 182
    found = interval(values, range(263), UNIT)
    assert found.n == 263
    assert found[:3] == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.8389, 1.0), (0.0, 0.0, 0.1611)])
def test_all_alike_still_has_a_width(value: float, low: float, high: float) -> None:
    found = interval([value] * 20, range(20), UNIT)
    assert found[:3] == pytest.approx((value, low, high), abs=5e-5)


def test_other_bounds_are_scaled() -> None:
    found = interval([5.0] * 20, range(20), Bounds(1, 5))
    assert found[:3] == pytest.approx((5.0, 1 + 4 * 0.8389, 5.0), abs=5e-4)


def test_images_that_agree_count_as_their_prompts() -> None:
    """Four images each of 20 prompts, alike within a prompt: the interval of 20 values, n = 80."""
    prompts = [1.0] * 12 + [0.0] * 8
    repeated = [value for value in prompts for _ in range(4)]
    clusters = [index for index in range(20) for _ in range(4)]
    single, grouped = interval(prompts, range(20), UNIT), interval(repeated, clusters, UNIT)
    assert grouped.n == 80
    # The clustered variance has the factor 20/19 of an estimate, the size is floored at 20.
    assert grouped[:3] == pytest.approx(single[:3], abs=1e-12)
    assert interval([1.0] * 80, clusters, UNIT)[1] == pytest.approx(0.8389, abs=5e-5)


def test_images_that_do_not_agree_count_each() -> None:
    """Every prompt has the same share, so knowing the prompt tells nothing."""
    values, clusters = [0.0, 1.0] * 50, [index for index in range(50) for _ in range(2)]
    assert interval(values, clusters, UNIT)[:3] == pytest.approx((0.5, *wilson(0.5, 100)))


def test_student_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, s = sqrt(5/3), t(3) = 3.182446."""
    half = 3.182446 * math.sqrt(5 / 3) / 2
    found = interval([1, 2, 3, 4], range(4), OPEN)
    assert found == Interval(2.5, pytest.approx(2.5 - half), pytest.approx(2.5 + half), 4)


def test_student_with_clusters_by_hand() -> None:
    """Prompts (1, 3), (2, 6), (5): mean 3.4, residual sums -2.8, 1.2, 1.6.

    Variance 3/2 (2.8² + 1.2² + 1.6²) / 5² = 0.7104, t(2) = 4.302653.
    """
    half = 4.302653 * math.sqrt(0.7104)
    found = interval([1, 3, 2, 6, 5], [7, 7, 3, 3, 9], OPEN)
    assert found[:3] == pytest.approx((3.4, 3.4 - half, 3.4 + half), abs=1e-5)


def test_student_is_cut_at_the_bounds() -> None:
    found = interval([0.9, 1.0, 0.2], range(3), UNIT)
    assert (found.low, found.high) == (0, 1)


def test_what_is_not_known_is_none() -> None:
    assert interval([], [], UNIT) == Interval(None, None, None, 0)
    assert interval([3.0, 4.0], [0, 0], OPEN) == Interval(3.5, None, None, 2)
    assert interval([0.3], [0], UNIT) == Interval(0.3, 0, 1, 1)
    assert interval([1.0], [0], UNIT).low == pytest.approx(wilson(1.0, 1)[0])


def test_strata_are_added_in_squares() -> None:
    strata = {"a": Interval(0.5, 0.2, 0.9, 10), "b": Interval(0.9, 0.5, 1.0, 30)}
    found = stratified(strata)
    assert found[:3] == pytest.approx(
        (0.7, 0.7 - math.hypot(0.3, 0.4) / 2, 0.7 + math.hypot(0.4, 0.1) / 2)
    )
    assert found.n == 40


def test_one_stratum_is_itself() -> None:
    alone = Interval(0.5, 0.25, 0.75, 10)
    assert stratified({"a": alone}) == alone


def test_a_stratum_without_values_makes_the_mean_unknown() -> None:
    empty = Interval(None, None, None, 0)
    assert stratified({"a": Interval(0.5, 0.2, 0.9, 10), "b": empty}) == Interval(
        None, None, None, 10
    )
    assert stratified({}) == Interval(None, None, None, 0)


@pytest.mark.parametrize(("share", "spread"), [(0.5, 0.0), (0.9, 0.3), (0.3, 0.25)])
def test_coverage_over_prompts_of_different_difficulty(share: float, spread: float) -> None:
    """40 prompts with 4 images each: 95% intervals hold the truth about 95% of the time."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 4)
    held, rounds = 0, 600
    for _ in range(rounds):
        chances = np.clip(share + spread * generator.choice([-1, 1], 40), 0, 1)
        values = (generator.random(160) < np.repeat(chances, 4)).astype(float)
        truth = np.mean(np.clip(share + spread * np.array([-1, 1]), 0, 1))
        found = interval(values.tolist(), clusters.tolist(), UNIT)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.92 < held / rounds < 0.99


def test_coverage_of_a_stratified_mean() -> None:
    generator = np.random.default_rng(1)
    shares, held, rounds = (0.98, 0.6, 0.15), 0, 600
    for _ in range(rounds):
        strata = {
            str(share): interval(
                (generator.random(60) < share).astype(float).tolist(), range(60), UNIT
            )
            for share in shares
        }
        found = stratified(strata)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.mean(shares) <= found.high
    assert 0.92 < held / rounds < 0.99


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 values of 1 clusters"):
        interval([1.0, 2.0], [0], UNIT)
