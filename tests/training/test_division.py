"""How samples are divided over processes and passes."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.tasks.batches import Batches, Sample
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.config import TrainConfig
from flowopd.training.division import Division, cut, possible_counts, require_full_passes
from flowopd.training.methods.anchored import Anchored

pytestmark = pytest.mark.usefixtures("fake_plugins")


def sample(task: str, seed: int) -> Sample:
    return Sample(PromptRecord("a prompt", task), task, 0, 0, seed, seed)


def samples(**counts: int) -> list[Sample]:
    seeds = iter(np.random.default_rng(0).permutation(1000).tolist())
    return [sample(task, next(seeds)) for task, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "processes", "micro", "sentence"),
    [
        ({"a": 384}, 8, 8, "8 devices: 48 images each an update, in 6 passes of up to 8"),
        ({"a": 3, "b": 3}, 1, 16, "1 device: 6 images an update, in 2 passes of up to 3"),
        ({"a": 5}, 1, 16, "1 device: 5 images an update, in 1 pass of up to 5"),
        ({"a": 5}, 2, 2, "2 devices: 2 or 3 images each an update, in 2 passes of up to 2"),
        ({"a": 17}, 1, 16, "1 device: 17 images an update, in 2 passes of up to 9"),
    ],
)
def test_the_sentence(counts: dict[str, int], processes: int, micro: int, sentence: str) -> None:
    assert Division(counts, processes, micro).sentence() == sentence


def test_passes_are_those_of_the_process_with_most() -> None:
    division = Division({"a": 9, "b": 2}, processes=4, micro=2)
    assert (division.passes("a"), division.passes("b")) == (2, 1)
    assert (division.fewest, division.most, division.all_passes) == (2, 3, 3)


@pytest.mark.parametrize("passes", [1, 2, 3, 5])
def test_passes_are_of_about_one_size(passes: int) -> None:
    parts = cut(list(range(7)), passes)
    assert sorted(item for part in parts for item in part) == list(range(7))
    sizes = [len(part) for part in parts]
    assert len(sizes) == passes
    assert max(sizes) - min(sizes) <= 1


def test_more_passes_than_items_leave_the_last_ones_out() -> None:
    assert cut([1, 2], 3) == [[1], [2]]
    assert cut([], 2) == []


@pytest.mark.parametrize(
    ("images", "processes", "micro", "fits"),
    [(8, 4, 2, True), (7, 4, 2, True), (3, 4, 2, False), (7, 4, 1, False), (8, 2, 1, True)],
)
def test_a_share_of_the_student_needs_everyone_in_every_pass(
    images: int, processes: int, micro: int, fits: bool
) -> None:
    division = Division({"shapes": images}, processes, micro)
    if fits:
        require_full_passes(division)
        return
    with pytest.raises(FlowOPDError, match=rf"'shapes' can have {images} images in an update"):
        require_full_passes(division)


class TestPossibleCounts:
    def config(self, **changes: Any) -> TrainConfig:
        tasks = {"a": 5.0, "b": 2.0, "c": 1.0}
        algorithm = {"name": "opd", "updates_per_rollout": 2, "path": "stored"}
        data = {
            "model": "fake",
            "tasks": {
                name: {"prompts": "a.txt", "teacher": "t", "share": share}
                for name, share in tasks.items()
            },
            "algorithm": algorithm,
            "batch": {"prompts": 11, "images_per_prompt": 3, **changes},
            "rollout": {"steps": 4, "guidance": 1.0, "sampler": "flow_sde"},
            "updates": 60,
        }
        return build(TrainConfig, data)

    def drawn(
        self, config: TrainConfig, observe: Callable[[int], Mapping[str, float]]
    ) -> list[dict[str, int]]:
        batch, found = config.batch, []
        batches = Batches(
            {name: [PromptRecord("x", name)] for name in config.tasks},
            {name: task.share for name, task in config.tasks.items()},
            prompts=batch.prompts,
            images_per_prompt=batch.images_per_prompt,
            mixing=batch.mixing,
            adaptive=batch.shares == "adaptive",
        )
        for number in range(30):
            found.append(dict(Counter(sample.task for sample in batches.draw())))
            batches.observe(observe(number))
        return found

    @pytest.mark.parametrize("mixing", ["mixed", "alternating"])
    def test_fixed_shares_are_dealt_beforehand_as_in_the_run(self, mixing: str) -> None:
        config = self.config(mixing=mixing)
        assert list(possible_counts(config)) == self.drawn(config, lambda _: {})

    @pytest.mark.parametrize("least", ["a", "b", "c"])
    def test_adaptive_shares_stay_within_what_is_possible(self, least: str) -> None:
        config = self.config(shares="adaptive", prompts=40)
        possible = {pair for counts in possible_counts(config) for pair in counts.items()}

        def learned(number: int) -> dict[str, float]:
            """One task of three is learned at once, and another one not at all."""
            others = [name for name in config.tasks if name != least]
            left = 1.0 if number == 0 else 0.0
            return {least: left, others[0]: 1.0 + number, others[1]: left}

        drawn = self.drawn(config, learned)
        assert {pair for counts in drawn for pair in counts.items()} <= possible
        assert min(count for name, count in possible if name == "a") > 3


class TestAnchored:
    def seen(self, found: list[Sample], share: float = 0.3, seed: int = 1) -> set[int]:
        anchored = Anchored(found, share, np.random.default_rng(seed))
        return {one.seed for one in found if one in anchored}

    def test_the_order_does_not_matter(self) -> None:
        found = samples(a=10, b=7)
        assert self.seen(found) == self.seen(found[::-1])

    def test_every_task_has_its_share_and_its_weight(self) -> None:
        found = samples(a=10, b=7)
        anchored = Anchored(found, 0.3, np.random.default_rng(1))
        for task, count, seen in [("a", 10, 3), ("b", 7, 3)]:
            assert sum(one in anchored for one in found if one.task == task) == seen
            assert anchored.weights[task] == count / seen

    def test_all_and_none(self) -> None:
        found = samples(a=4)
        assert len(self.seen(found, 1.0)) == 4
        assert Anchored(found, 1.0, np.random.default_rng(1)).weights == {"a": 1.0}
        assert self.seen(found, 0.0) == set()

    def test_every_sample_is_seen_as_often(self) -> None:
        found = samples(a=5)
        times = [sum(one.seed in self.seen(found, 0.4, n) for n in range(400)) for one in found]
        assert all(abs(count - 160) < 45 for count in times)
