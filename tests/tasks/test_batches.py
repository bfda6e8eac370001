"""Batches: routed by the sample, exact in their shares over time, and a function of their state."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from flowopd.errors import FlowOPDError
from flowopd.tasks import PromptRecord
from flowopd.tasks.batches import NARROWEST, WIDEST, Batches, Sample

TASKS = {"shapes": 5, "words": 7, "style": 3}
SHARES = {"shapes": 3.0, "words": 1.0, "style": 1.0}


def make(
    shares: Mapping[str, float] = SHARES, sizes: Mapping[str, int] = TASKS, **keys: Any
) -> Batches:
    records = {
        task: [PromptRecord(f"{task} {n}", task) for n in range(sizes.get(task, 4))]
        for task in shares
    }
    return Batches(records, shares, **({"prompts": 4} | keys))


def counts(samples: list[Sample]) -> Counter[str]:
    return Counter(sample.task for sample in samples)


def total(batches: Batches, draws: int) -> Counter[str]:
    return sum((counts(batches.draw()) for _ in range(draws)), Counter())


class TestSamples:
    def test_a_batch_is_groups_of_one_prompt_each_task_by_task(self) -> None:
        samples = make(images_per_prompt=3).draw()
        assert [sample.group for sample in samples] == [n // 3 for n in range(12)]
        for group in range(4):
            own = [sample for sample in samples if sample.group == group]
            assert len({(s.record.prompt, s.task, s.number) for s in own}) == 1
        order = [sample.task for sample in samples]
        assert order == sorted(order, key=list(TASKS).index)

    def test_the_route_is_written_on_every_sample(self) -> None:
        batches = make()
        for _ in range(20):
            for sample in batches.draw():
                assert sample.record.task == sample.task
                assert sample.record.prompt == f"{sample.task} {sample.number}"

    def test_the_same_prompts_may_serve_two_tasks(self) -> None:
        """The task is the sample's, not the record's."""
        records = [PromptRecord("a circle", "shapes")]
        batches = Batches({"a": records, "b": records}, {"a": 1, "b": 1}, prompts=2)
        assert [sample.task for sample in batches.draw()] == ["a", "b"]

    def test_seeds_are_unique_and_fit_torchs_generators(self) -> None:
        batches = make(images_per_prompt=4)
        samples = [sample for _ in range(50) for sample in batches.draw()]
        seeds = [s.start_seed for s in samples] + [s.seed for s in samples]
        assert len(set(seeds)) == len(seeds) == 2 * 50 * 16
        assert all(0 <= seed < 2**63 for seed in seeds)

    def test_same_noise_is_one_start_for_a_group_and_its_own_way_for_each(self) -> None:
        samples = make(images_per_prompt=3, same_noise=True).draw()
        starts = [{s.start_seed for s in samples if s.group == group} for group in range(4)]
        assert [len(start) for start in starts] == [1] * 4
        assert len(set.union(*starts)) == 4
        assert len({sample.seed for sample in samples}) == 12
        assert [s.seed for s in samples] == [s.seed for s in make(images_per_prompt=3).draw()]


class TestPrompts:
    def test_every_prompt_comes_once_an_epoch(self) -> None:
        batches = make({"shapes": 1.0, "words": 1.0})
        numbers: dict[str, list[int]] = {"shapes": [], "words": []}
        for _ in range(70):
            for sample in batches.draw():
                numbers[sample.task].append(sample.number)
        for task, found in numbers.items():
            size = TASKS[task]
            epochs = [found[n : n + size] for n in range(0, len(found), size)]
            assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
            assert len({tuple(epoch) for epoch in epochs}) > 5

    def test_an_epoch_may_end_within_a_batch(self) -> None:
        batches = make({"style": 1.0}, prompts=4)
        first = [sample.number for sample in batches.draw()]
        second = [sample.number for sample in batches.draw()]
        assert sorted(first[:3]) == sorted([first[3], *second[:2]]) == [0, 1, 2]

    def test_tasks_of_one_size_have_orders_of_their_own(self) -> None:
        sizes = {"a": 30, "b": 30}
        samples = make({"a": 1.0, "b": 1.0}, sizes, prompts=60).draw()
        orders = [[s.number for s in samples if s.task == task] for task in "ab"]
        assert orders[0] != orders[1]


class TestDeterminism:
    keys: Mapping[str, Any] = {"images_per_prompt": 2}

    def test_the_same_seed_gives_the_same_batches_and_another_others(self) -> None:
        one, same, other = make(seed=1), make(seed=1), make(seed=2)
        drawn = [[batches.draw() for _ in range(5)] for batches in (one, same, other)]
        assert drawn[0] == drawn[1]
        seeds = [{s.seed for batch in batches for s in batch} for batches in drawn]
        assert seeds[0].isdisjoint(seeds[2])
        assert [s.number for b in drawn[0] for s in b] != [s.number for b in drawn[2] for s in b]

    @pytest.mark.parametrize("stop", range(9))
    @pytest.mark.parametrize("mixing", ["mixed", "alternating"])
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_going_on_from_a_state_is_as_if_never_stopped(
        self, stop: int, mixing: str, adaptive: bool
    ) -> None:
        """By way of JSON, whose keys may come back in another order."""
        keys = {"mixing": mixing, "adaptive": adaptive, "seed": 3}
        whole, first, second = (make(**keys) for _ in range(3))
        expected = []
        for number in range(12):
            expected.append(whole.draw())
            whole.observe(observed(number))
        for number in range(stop):
            first.draw()
            first.observe(observed(number))
        second.load_state(json.loads(json.dumps(first.state(), sort_keys=True)))
        for number in range(stop, 12):
            assert second.draw() == expected[number]
            second.observe(observed(number))

    def test_a_state_is_a_copy(self) -> None:
        batches = make()
        state = batches.state()
        before = json.dumps(state)
        batches.draw()
        batches.observe(dict.fromkeys(TASKS, 1.0))
        assert json.dumps(state) == before

    def test_a_state_of_other_tasks_is_refused(self) -> None:
        with pytest.raises(FlowOPDError, match=r"of the tasks \['a', 'b'\], these of \['a', 'c'\]"):
            make({"a": 1.0, "c": 1.0}).load_state(make({"a": 1.0, "b": 1.0}).state())


def observed(number: int) -> dict[str, float]:
    return {"shapes": 1.0 / (number + 1), "words": 1.0, "style": 0.3}


class TestShares:
    def test_are_exact_over_time(self) -> None:
        """3:1:1 of 4 prompts is 2.4 : 0.8 : 0.8."""
        assert total(make(), 5) == {"shapes": 12, "words": 4, "style": 4}
        assert total(make(), 100) == {"shapes": 240, "words": 80, "style": 80}

    def test_every_batch_is_as_near_to_them_as_whole_prompts_allow(self) -> None:
        rng = random.Random(0)
        for _ in range(20):
            tasks = [f"t{n}" for n in range(rng.randint(2, 7))]
            shares = {task: rng.choice([1, 1, 2, 5, 20, 40]) for task in tasks}
            prompts = rng.randint(len(tasks), len(tasks) + 6)
            batches, so_far = make(shares, prompts=prompts), Counter[str]()
            for draw in range(1, 16):
                found = counts(batches.draw())
                assert sum(found.values()) == prompts
                so_far += found
                for task, share in shares.items():
                    owed = draw * prompts * share / sum(shares.values())
                    assert abs(so_far[task] - owed) < len(tasks) / 2

    def test_a_batch_never_has_a_prompt_too_many(self) -> None:
        """Tasks that are ahead once owed a batch less than nothing, and it grew by one."""
        shares = {str(n): share for n, share in enumerate([1, 1, 40, 40, 1, 40, 40])}
        batches = make(shares, prompts=9)
        assert {len(batches.draw()) for _ in range(60)} == {9}

    def test_do_not_depend_on_their_sum(self) -> None:
        one, ten = make(), make({task: 10 * share for task, share in SHARES.items()})
        assert [one.draw() for _ in range(10)] == [ten.draw() for _ in range(10)]
        assert one.shares() == pytest.approx({"shapes": 0.6, "words": 0.2, "style": 0.2})

    def test_alternating_gives_a_batch_to_one_task(self) -> None:
        batches = make(mixing="alternating")
        turns = [counts(batches.draw()) for _ in range(100)]
        assert all(list(turn.values()) == [4] for turn in turns)
        assert sum(turns, Counter()) == {"shapes": 240, "words": 80, "style": 80}
        assert [next(iter(turn)) for turn in turns[:5]] == [
            "shapes",
            "words",
            "shapes",
            "style",
            "shapes",
        ]


class TestAdaptiveShares:
    even: Mapping[str, float] = {"a": 1.0, "b": 1.0}

    def test_are_the_fixed_ones_until_every_task_was_observed(self) -> None:
        batches = make(self.even, adaptive=True)
        batches.observe({"a": 1.0})
        batches.observe({"a": 0.1})
        assert batches.shares() == {"a": 0.5, "b": 0.5}

    def test_follow_the_larger_remaining_divergence(self) -> None:
        """Of its own beginning: b is still 10 times smaller than a, and has further to go."""
        batches = make(self.even, adaptive=True, prompts=8)
        batches.observe({"a": 10.0, "b": 0.1})
        for _ in range(100):
            batches.observe({"a": 1.0, "b": 0.05})
        # What is left: 0.1 and 0.5, to within what is remembered of the first.
        assert batches.shares()["b"] == pytest.approx(0.5 / 0.6, abs=0.01)
        assert total(batches, 60)["b"] == pytest.approx(60 * 8 * 0.5 / 0.6, abs=3)

    def test_by_hand_after_one_step(self) -> None:
        batches = make({"a": 3.0, "b": 1.0}, adaptive=True)
        batches.observe({"a": 1.0, "b": 2.0})
        batches.observe({"a": 0.0, "b": 2.0})
        left = {"a": 0.9, "b": 1.0}
        mean = 0.95
        weights = {"a": 3 * left["a"] / mean, "b": left["b"] / mean}
        expected = {task: weight / sum(weights.values()) for task, weight in weights.items()}
        assert batches.shares() == pytest.approx(expected)

    @pytest.mark.parametrize("behind", ["a", "b"])
    def test_stay_within_limits(self, behind: str) -> None:
        shares = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 1.0, "e": 1.0, "f": 1.0}
        batches = make(shares, adaptive=True, prompts=12)
        batches.observe(dict.fromkeys(shares, 1.0))
        for _ in range(500):
            batches.observe({task: float(task == behind) for task in shares})
        found = batches.shares()
        assert sum(found.values()) == pytest.approx(1)
        factors = {task: found[task] / shares[task] for task in shares}
        others = [factor for task, factor in factors.items() if task != behind]
        assert others == pytest.approx([others[0]] * 5)
        assert factors[behind] / others[0] == pytest.approx(WIDEST / NARROWEST)
        assert set(counts(batches.draw())) <= set(shares)

    def test_nobody_starves(self) -> None:
        batches = make(self.even, adaptive=True, prompts=4)
        batches.observe({"a": 1.0, "b": 1.0})
        for _ in range(500):
            batches.observe({"a": 0.0, "b": 1.0})
        assert total(batches, 50)["a"] > 10

    def test_everything_learned_leaves_the_fixed_ones(self) -> None:
        batches = make(self.even, adaptive=True)
        for _ in range(3):
            batches.observe({"a": 0.0, "b": 0.0})
        assert batches.shares() == {"a": 0.5, "b": 0.5}

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_divergence_that_is_no_number_is_left_out(self, value: float) -> None:
        batches = make(self.even, adaptive=True)
        batches.observe({"a": value, "b": 1.0})
        assert batches.shares() == {"a": 0.5, "b": 0.5}
        batches.observe({"a": 1.0, "b": 1.0})
        batches.observe({"a": value, "b": 0.5})
        batches.draw()
        assert batches.shares()["a"] > 0.5

    def test_fixed_shares_do_not_listen(self) -> None:
        batches = make(self.even)
        batches.observe({"a": 1.0, "b": 1.0})
        batches.observe({"a": 0.0, "b": 1.0})
        assert batches.shares() == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("records", "shares", "sentence"),
    [
        ({"a": ["p"]}, {"b": 1.0}, r"for the tasks \['a'\] and shares for \['b'\]"),
        ({}, {}, r"for the tasks \[\]"),
        ({"a": ["p"], "b": []}, {"a": 1.0, "b": 1.0}, "The task 'b' has no prompts"),
    ],
)
def test_what_is_refused(
    records: dict[str, list[str]], shares: dict[str, float], sentence: str
) -> None:
    found = {task: [PromptRecord(text) for text in texts] for task, texts in records.items()}
    with pytest.raises(FlowOPDError, match=sentence):
        Batches(found, shares, prompts=2)
