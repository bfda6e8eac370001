"""The adapters and networks of a plan: read, to be made by other stages, or on the hub."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import TASKS, changed, config_of, data_for, write_adapters

from flowopd.errors import FlowOPDError
from flowopd.planning.experts import Experts, Maker
from flowopd.planning.prompt_files import Assumed
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import A_SUFFIX
from flowopd.policy.lora_match import linear_layers
from flowopd.policy.network import NetworkFiles
from flowopd.policy.protocol import JOINT_ATTENTION
from flowopd.policy.sd3 import SD3Config
from flowopd.study.kinds.merge import MergeStage
from flowopd.training.config import TrainConfig

SMALL, LARGE, MADE = Path("small"), Path("large"), Path("made")


@pytest.fixture
def model(tiny_pipeline: Path) -> SD3Config:
    return SD3Config(path=str(tiny_pipeline), device="cpu")


def training(pipeline: Path, folder: Path, **changes: Any) -> TrainConfig:
    folder.mkdir(exist_ok=True)
    data = data_for(pipeline, folder, {"name": "grpo"})
    return config_of(changed(data, changes))


def adapter(model: SD3Config, makers: dict[Path, Maker], path: Path) -> AdapterFiles:
    found = Experts(model, makers, Assumed()).of(path)
    assert isinstance(found, AdapterFiles)
    return found


def ranks(files: AdapterFiles) -> set[int]:
    return {len(tensor) for key, tensor in files.tensors.items() if key.endswith(A_SUFFIX)}


def test_one_that_is_there_is_read(tiny_pipeline: Path, tmp_path: Path, model: SD3Config) -> None:
    files = write_adapters(tiny_pipeline, tmp_path, rank=3)
    found = adapter(model, {}, files[TASKS[0]])
    assert ranks(found) == {3}
    assert not next(iter(found.tensors.values())).is_meta


class TestToBeMade:
    def test_by_a_training_of_its_own_rank_and_layers(
        self, tiny_pipeline: Path, tmp_path: Path, model: SD3Config
    ) -> None:
        student = {"rank": 5, "targets": ["attn.to_q"]}
        maker = training(tiny_pipeline, tmp_path, student=student)
        found = adapter(model, {MADE: maker}, MADE)
        assert ranks(found) == {5}
        assert len(found.tensors) == 2 * 3
        assert all(tensor.is_meta for tensor in found.tensors.values())

    def test_by_a_training_that_goes_on_from_another(
        self, tiny_pipeline: Path, tmp_path: Path, model: SD3Config
    ) -> None:
        first = training(tiny_pipeline, tmp_path, student={"rank": 7})
        second = training(tiny_pipeline, tmp_path, start=str(tmp_path / "first"))
        makers: dict[Path, Maker] = {tmp_path / "first": first, MADE: second}
        assert ranks(adapter(model, makers, MADE)) == {7}

    def test_of_all_weights(self, tiny_pipeline: Path, tmp_path: Path, model: SD3Config) -> None:
        maker = training(tiny_pipeline, tmp_path, student={"full": True})
        found = Experts(model, {MADE: maker}, Assumed()).of(MADE)
        assert isinstance(found, NetworkFiles)
        assert found.config["num_layers"] == 3

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"method": "exact"}, {2 + 30}),
            ({"method": "svd"}, {30}),
            ({"method": "svd", "rank": 8}, {8}),
            ({"method": "ties"}, {30}),
            ({"method": "svd", "rank": 40}, {32}),
        ],
    )
    def test_by_a_merge(
        self,
        tiny_pipeline: Path,
        tmp_path: Path,
        model: SD3Config,
        settings: dict[str, Any],
        expected: set[int],
    ) -> None:
        makers: dict[Path, Maker] = {
            SMALL: training(tiny_pipeline, tmp_path, student={"rank": 2}),
            LARGE: training(tiny_pipeline, tmp_path, student={"rank": 30}),
            MADE: MergeStage(model=model, adapters={SMALL: 0.5, LARGE: 0.5}, **settings),
        }
        assert ranks(adapter(model, makers, MADE)) == expected

    def test_a_parent_of_no_weight_takes_no_part_in_a_merge(
        self, tiny_pipeline: Path, tmp_path: Path, model: SD3Config
    ) -> None:
        makers: dict[Path, Maker] = {
            SMALL: training(tiny_pipeline, tmp_path, student={"rank": 2}),
            LARGE: training(tiny_pipeline, tmp_path, student={"rank": 30}),
            MADE: MergeStage(model=model, adapters={SMALL: 1.0, LARGE: 0.0}, method="exact"),
        }
        assert ranks(adapter(model, makers, MADE)) == {2}

    def test_a_merge_of_networks_is_refused(
        self, tiny_pipeline: Path, tmp_path: Path, model: SD3Config
    ) -> None:
        makers: dict[Path, Maker] = {
            LARGE: training(tiny_pipeline, tmp_path, student={"full": True}),
            MADE: MergeStage(model=model, adapters={LARGE: 1.0}),
        }
        with pytest.raises(FlowOPDError, match="only adapters can be merged"):
            Experts(model, makers, Assumed()).of(MADE)


def test_one_on_a_hub_that_cannot_be_asked_is_taken_for_the_usual(model: SD3Config) -> None:
    assumed = Assumed()
    found = Experts(model, {}, assumed).of(Path("somebody/an-adapter"))
    assert isinstance(found, AdapterFiles)
    assert ranks(found) == {32}
    layers = linear_layers(model.skeleton())
    adapted = [path for path in layers if path.endswith(JOINT_ATTENTION)]
    assert len(found.tensors) == 2 * len(adapted)
    assert assumed.sentences == [
        "somebody/an-adapter could not be looked up on the hub; it is taken for a LoRA of rank 32 "
        "on the joint attention."
    ]
