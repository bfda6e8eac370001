"""A run that is rehearsed on shapes, against the same run on numbers."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import TASKS, changed, config_of, data_for, rehearse, run

from flowopd.planning.needs import Phase, Rehearsed
from flowopd.planning.outline import bytes_of
from tiny_sd3 import tiny_transformer

WITHIN = 0.1
RUNS: dict[str, dict[str, Any]] = {
    "fused": {"name": "opd"},
    "some steps": {
        "name": "opd",
        "steps": {"choose": "random", "count": 1},
        "anchor": {"adapter": "base", "share": 0.5},
    },
    "stored": {"name": "opd", "path": "stored", "updates_per_rollout": 2},
    "policy gradient": {"name": "opd", "loss": "policy_gradient"},
    "grpo": {"name": "grpo"},
    "nft": {"name": "nft"},
    "sft": {"name": "sft", "images_per_task": 8},
}


def peak(found: Rehearsed, *, full: bool = False) -> int:
    """Without weights that are read from files: those of a student that is a whole network."""
    others = (found.experts, found.networks, found.gradients, found.optimizer, found.averages)
    working = [size for phase, size in found.peaks.items() if phase is not Phase.ENCODE]
    return sum(others) + found.embeddings + (0 if full else found.student) + max(working)


@pytest.mark.parametrize("name", RUNS)
def test_it_holds_what_the_run_holds(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    config = config_of(data_for(tiny_pipeline, tmp_path, RUNS[name]))
    assert peak(rehearse(config)) == pytest.approx(run(config, tmp_path), rel=WITHIN)


CHANGES: dict[str, dict[str, Any]] = {
    "checkpointing": {"model.gradient_checkpointing": True},
    "merged": {"teachers.merged": True},
    "averages": {"ema.every": 1, "interference_every": 1},
    "full": {"student.full": True},
    "scored": {"algorithm.log_reward": True, "tasks.shapes.reward.a": 1, "tasks.words.reward.a": 1},
}


@pytest.mark.parametrize("name", CHANGES)
def test_with_other_settings(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    data = data_for(tiny_pipeline, tmp_path, RUNS["fused"])
    config = config_of(changed(data, CHANGES[name]))
    found = peak(rehearse(config), full=config.student.full)
    assert found == pytest.approx(run(config, tmp_path), rel=WITHIN)


class TestWhatItDependsOn:
    """Without a run to compare with: each is a matter of arithmetic, or of more and less."""

    @pytest.fixture
    def data(self, tiny_pipeline: Path, tmp_path: Path) -> dict[str, Any]:
        return data_for(tiny_pipeline, tmp_path, RUNS["fused"])

    def test_gradients_and_averages_are_as_large_as_the_student(self, data: dict[str, Any]) -> None:
        found = rehearse(config_of(changed(data, {"ema.every": 1})))
        assert found.student >= 4 * found.parameters
        assert found.gradients == found.averages == pytest.approx(4 * found.parameters, rel=0.15)
        assert found.optimizer == pytest.approx(8 * found.parameters, rel=0.15)

    def test_more_devices_divide_the_batch_and_not_the_passes(self, data: dict[str, Any]) -> None:
        alone, two = rehearse(config_of(data)), rehearse(config_of(data), devices=2)
        assert (alone.division.most, two.division.most) == (4, 2)
        assert two.embeddings <= alone.embeddings

    def test_a_larger_pass_takes_more(self, data: dict[str, Any]) -> None:
        small, large = (
            rehearse(config_of(changed(data, {"batch.micro": size, "batch.images_per_prompt": 8})))
            for size in (1, 8)
        )
        assert large.peaks[Phase.TRAIN] > 5 * small.peaks[Phase.TRAIN]

    def test_more_passes_take_no_more_of_the_fused_step(self, data: dict[str, Any]) -> None:
        few, many = (
            rehearse(config_of(changed(data, {"batch.images_per_prompt": size})))
            for size in (2, 40)
        )
        assert many.division.all_passes == 20 * few.division.all_passes
        assert many.peaks[Phase.TRAIN] == pytest.approx(few.peaks[Phase.TRAIN], rel=0.05)

    def test_stored_paths_add_up(self, data: dict[str, Any]) -> None:
        found = {}
        for size in (4, 12, 20):
            keys = {"batch.images_per_prompt": size, "algorithm.path": "stored"}
            found[size] = rehearse(config_of(changed(data, keys))).peaks[Phase.TRAIN]
        assert found[20] - found[12] == pytest.approx(found[12] - found[4], rel=0.05)
        assert found[12] > found[4]

    def test_prompts_are_encoded_with_and_without_a_text_cache(self, data: dict[str, Any]) -> None:
        stay, freed = (
            rehearse(config_of(changed(data, keys))).peaks[Phase.ENCODE]
            for keys in ({}, {"text_cache": "somewhere"})
        )
        assert stay == pytest.approx(freed, rel=0.1)

    def test_a_probe_draws_as_many_pictures_as_it_has(self, data: dict[str, Any]) -> None:
        probe = {
            "every": 4,
            "prompts": data["tasks"]["words"]["prompts"],
            "scorers": ["level"],
            "sampling": {"steps": 2},
        }
        config = config_of(data | {"probe": {**probe, "prompts": [{"path": probe["prompts"]}]}})
        one, two = (rehearse(config, probed=count).peaks[Phase.PROBE] for count in (1, 9))
        assert 0 < one < two

    def test_whole_networks_wait_in_host_memory_or_stay(
        self, data: dict[str, Any], tmp_path: Path
    ) -> None:
        for number, task in enumerate(TASKS, 1):
            tiny_transformer(number).save_pretrained(tmp_path / f"whole-{task}")
            data["tasks"][task]["teacher"] = str(tmp_path / f"whole-{task}")
        stay = rehearse(config_of(data))
        wait = rehearse(config_of(changed(data, {"teachers.place": "host"})))
        assert stay.networks == wait.networks == 2 * bytes_of(tiny_transformer())
        assert (stay.away, stay.hosted) == (0, 0)
        assert wait.away == stay.networks / 2
        powers = [
            one for one in tiny_transformer().state_dict().values() if one.nbytes & (one.nbytes - 1)
        ]
        assert stay.networks < wait.hosted < stay.networks + 2 * sum(one.nbytes for one in powers)
        assert stay.experts == 0

    def test_several_devices_share_a_student_that_is_trained_whole(
        self, data: dict[str, Any]
    ) -> None:
        config = config_of(changed(data, {"student.full": True, "model.dtype": "bf16"}))
        alone, four = rehearse(config), rehearse(config, devices=4)
        assert four.gradients == alone.parameters
        assert four.optimizer == 2 * alone.parameters
        assert four.student < alone.student / 2
