"""Students of which all weights are trained."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from sd3_runs import forget_the_end, lora, network, sd3_config, sd3_data

from flowopd.errors import FlowOPDError
from flowopd.policy.network import read_network
from flowopd.training.config import TrainConfig
from flowopd.training.division import Division
from flowopd.training.method import _require_full_passes
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare, train

FULL = {"student": {"full": True}, "optimizer": {"lr": 1e-4}, "ema": {"decay": 0.5, "every": 1}}

NFT = {
    "algorithm": {"name": "nft"},
    "batch": {"prompts": 4, "images_per_prompt": 2},
    "rollout": {"steps": 4, "guidance": 1.0, "sampler": "ode"},
}
NO_TEACHER = {"shapes": {"prompts": "shapes.jsonl", "reward": {"level": 1}}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {"shapes": lora(folder / "a", 1), "words": lora(folder / "b", 2)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SD3Transformer2DModel.from_pretrained(folder).state_dict()


def test_all_weights_move_and_come_out_as_a_network(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    config = sd3_config(tmp_path, tiny_pipeline_no_t5, taught, **FULL)
    run = tmp_path / "run"
    train(prepare(config), run)
    before, after = weights(tiny_pipeline_no_t5 / "transformer"), weights(run / "adapter")
    still = {key for key in before if torch.equal(before[key], after[key])}
    # The last block's text has queries, of which nothing comes.
    idle = ("attn.norm_added_q.weight", "attn.add_q_proj.bias", "attn.add_q_proj.weight")
    assert still == {"pos_embed.pos_embed", *(f"transformer_blocks.2.{key}" for key in idle)}
    files = read_network(run / "adapter")
    assert files.notes["guidance"] == 1.0
    assert files.notes["fingerprint"] == config.model.fingerprint() != files.identity
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    result = forget_the_end(run)
    train(prepare(config), run)
    assert forget_the_end(run) == result


def test_it_starts_from_a_network_or_from_an_adapter_in_the_base(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    def start_of(place: Path) -> dict[str, torch.Tensor]:
        config = sd3_config(tmp_path, tiny_pipeline_no_t5, taught, start=str(place), **FULL)
        context = make_context(prepare(config), config.model.open(), Ranks(), tmp_path)
        return context.roles.student.state()

    other = network(tmp_path / "other", 3)
    found = start_of(other)
    assert all(torch.equal(found[key], tensor) for key, tensor in weights(other).items()
               if key in found)  # fmt: skip
    found, base = start_of(taught["shapes"]), weights(tiny_pipeline_no_t5 / "transformer")
    changed = {key for key in found if not torch.equal(found[key], base[key])}
    assert len(changed) == 23
    assert all(".attn." in key for key in changed)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (NFT | {"tasks": NO_TEACHER}, "nft keeps an older student, which only a LoRA can"),
        ({"interference_every": 1}, "interference_every compares gradients of adapters"),
        ({"student": {"full": True, "rank": 8}}, "trains all weights, and rank is of a LoRA"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    tmp_path: Path,
    tiny_pipeline_no_t5: Path,
    taught: dict[str, Path],
    changes: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        sd3_config(tmp_path, tiny_pipeline_no_t5, taught, **(FULL | changes))


WORKER = """
import json, sys
from pathlib import Path
from flowopd.config import build
from flowopd.training.config import TrainConfig
from flowopd.training.run import prepare, train
config = build(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))
train(prepare(config), Path(sys.argv[2]))
"""


def test_two_processes_with_a_share_each_train_the_same_and_either_goes_on(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    data = sd3_data(tmp_path, tiny_pipeline_no_t5, taught, **FULL)
    train(prepare(build_config(data)), tmp_path / "one")
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr=127.0.0.1", "--nproc-per-node=2", str(tmp_path / "worker.py")]
    command += [str(tmp_path / "config.json"), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same(tmp_path / "one", tmp_path / "two")
    forget_the_end(tmp_path / "two")
    train(prepare(build_config(data)), tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two")


def build_config(data: dict[str, Any]) -> TrainConfig:
    from flowopd.config import build

    return build(TrainConfig, data)


def same(first: Path, second: Path) -> None:
    one, two = weights(first / "adapter"), weights(second / "adapter")
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=2e-6, msg=key)


@pytest.mark.parametrize(
    ("images", "processes", "micro", "fits"),
    [(8, 4, 2, True), (7, 4, 2, True), (3, 4, 2, False), (7, 4, 1, False), (8, 2, 1, True)],
)
def test_a_share_of_the_student_needs_everyone_in_every_pass(
    images: int, processes: int, micro: int, fits: bool
) -> None:
    division = Division({"shapes": images}, processes, micro)
    if fits:
        _require_full_passes(division)
        return
    with pytest.raises(FlowOPDError, match=rf"'shapes' has {images} images in this update, too f"):
        _require_full_passes(division)
