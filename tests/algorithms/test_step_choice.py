"""Which steps are chosen, and that their weights are unbiased: by going through every outcome."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from flowopd.algorithms.settings import StepsConfig
from flowopd.algorithms.steps import beta_shares, choose_steps
from flowopd.errors import FlowOPDError

ELIGIBLE = [0, 1, 2, 4, 5]  # not all steps are


class Branching:
    """In the place of numpy's generator: one path through all that it could have drawn."""

    def __init__(self, path: list[int]) -> None:
        self.path, self.taken, self.chance = path, [], 1.0

    def choice(self, a, size=None, replace=True, p=None):
        items = list(range(a)) if isinstance(a, int) else list(a)
        if size is None:
            return self._one(items, p)
        if not replace:
            return np.array(self._one(list(itertools.permutations(items, size)), p))
        return np.array([self._one(items, p) for _ in range(size)])

    def integers(self, high):
        return self._one(list(range(high)), None)

    def _one(self, items, p):
        place = len(self.taken)
        index = self.path[place] if place < len(self.path) else 0
        self.taken.append((index, len(items)))
        self.chance *= 1 / len(items) if p is None else p[index]
        return items[index]


def outcomes(function: Callable[[Branching], dict]) -> Iterator[tuple[dict, float]]:
    """All results with their probabilities."""
    path: list[int] | None = []
    while path is not None:
        rng = Branching(path)
        yield function(rng), rng.chance
        open_places = [i for i, (index, count) in enumerate(rng.taken) if index + 1 < count]
        last = max(open_places, default=None)
        path = None if last is None else [index for index, _ in rng.taken[: last + 1]]
        if path is not None:
            path[-1] += 1


def distribution(update=0, eligible=ELIGIBLE, **keys):
    config = StepsConfig(**keys)
    found = list(outcomes(lambda rng: choose_steps(config, eligible, rng, update)))
    assert sum(chance for _, chance in found) == pytest.approx(1)
    return found


def expected_weights(found):
    weights = Counter()
    for chosen, chance in found:
        for index, weight in chosen.items():
            weights[index] += chance * weight
    return [weights[index] for index in ELIGIBLE]


@pytest.mark.parametrize("choose", ["random", "stratified", "beta"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_weighted_sum_has_the_mean_over_all_steps_for_expectation(choose, count):
    found = distribution(choose=choose, count=count)
    assert expected_weights(found) == pytest.approx([1 / 5] * 5)


@pytest.mark.parametrize("choose", ["random", "stratified", "window"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_steps_as_asked_for_in_order(choose, count):
    for chosen, _ in distribution(choose=choose, count=count):
        assert len(chosen) == count
        assert list(chosen) == sorted(chosen)
        assert sum(chosen.values()) == pytest.approx(1)
        assert set(chosen) <= set(ELIGIBLE)


def test_all_is_every_step_evenly():
    assert distribution(choose="all") == [(dict.fromkeys(ELIGIBLE, 0.2), 1.0)]


def test_random_finds_every_set_of_steps():
    assert {tuple(chosen) for chosen, _ in distribution(choose="random", count=2)} == set(
        itertools.combinations(ELIGIBLE, 2)
    )


def test_stratified_takes_one_step_of_each_stretch():
    """Stretches of 3 and of 2 steps: with weights of 3/5 and 2/5."""
    for chosen, _ in distribution(choose="stratified", count=2):
        first, second = chosen
        assert first in (0, 1, 2)
        assert second in (4, 5)
        assert list(chosen.values()) == pytest.approx([3 / 5, 2 / 5])


class TestBeta:
    def test_shares_are_those_of_the_closed_form(self):
        """The CDF of Beta(5, 2) is `6 x^5 - 5 x^6`."""
        x = np.linspace(0, 1, 9)
        np.testing.assert_allclose(beta_shares(8), np.diff(6 * x**5 - 5 * x**6), rtol=1e-9)
        assert beta_shares(8).argmax() == 6  # toward low noise

    def test_a_step_that_is_drawn_twice_counts_twice(self):
        shares = beta_shares(5)
        for chosen, _ in distribution(choose="beta", count=2):
            if len(chosen) == 1:
                (index,) = chosen
                assert chosen[index] == pytest.approx(1 / (5 * shares[ELIGIBLE.index(index)]))

    def test_without_reweighting_the_emphasis_stays(self):
        found = distribution(choose="beta", count=2, reweight=False)
        assert expected_weights(found) == pytest.approx(beta_shares(5).tolist())
        assert all(sum(chosen.values()) == pytest.approx(1) for chosen, _ in found)


class TestWindow:
    def test_lies_at_a_random_place(self):
        found = distribution(choose="window", count=2)
        assert [(tuple(chosen), chance) for chosen, chance in found] == [
            ((0, 1), 0.25),
            ((1, 2), 0.25),
            ((2, 4), 0.25),
            ((4, 5), 0.25),
        ]

    def test_slides_with_the_updates_and_starts_over(self):
        places = [
            tuple(distribution(update, choose="window", count=3, slide_every=2)[0][0])
            for update in range(8)
        ]
        a, b, c = (0, 1, 2), (1, 2, 4), (2, 4, 5)
        assert places == [a, a, b, b, c, c, a, a]

    def test_that_slides_is_drawn_from_nothing(self):
        assert len(distribution(3, choose="window", count=3, slide_every=2)) == 1


@pytest.mark.parametrize("choose", ["random", "stratified", "beta", "window"])
def test_with_numpys_generator_it_follows_from_the_seed(choose):
    config = StepsConfig(choose=choose, count=2)
    draws = [
        [choose_steps(config, ELIGIBLE, np.random.default_rng([seed, n]), n) for n in range(20)]
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert len({tuple(chosen) for chosen in draws[0]}) > 1
    assert all(type(index) is int for chosen in draws[0] for index in chosen)
    assert all(type(weight) is float for chosen in draws[0] for weight in chosen.values())


@pytest.mark.parametrize("choose", ["random", "beta"])
def test_numpys_generator_draws_the_steps_as_often_as_it_should(choose):
    config, rng, n = StepsConfig(choose=choose, count=2), np.random.default_rng(0), 4000
    weights = np.zeros((n, 6))
    for row in weights:
        for index, weight in choose_steps(config, ELIGIBLE, rng, 0).items():
            row[index] = weight
    own = weights[:, ELIGIBLE]
    errors = own.std(0) / n**0.5
    assert (abs(own.mean(0) - 0.2) < 4.5 * errors).all()


def test_more_steps_than_there_are_is_refused():
    with pytest.raises(
        FlowOPDError, match=r"steps\.count is 6, but only 5 steps of the rollout can be trained on"
    ):
        choose_steps(StepsConfig(choose="random", count=6), ELIGIBLE, np.random.default_rng(0), 0)
