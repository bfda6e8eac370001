"""Students of which all weights are trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from sd3_runs import forget_the_end, lora, network, sd3_config, sd3_data

from flowopd.errors import FlowOPDError
from flowopd.policy.network import read_network
from flowopd.policy.sd3_transformer import sd3_velocity
from flowopd.training.config import TrainConfig
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare, train
from launching import launch, torchrun

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


def test_pictures_are_decoded_in_the_precision_of_the_autoencoder(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    """The student's weights are lowered where it computes, and nothing else is."""
    data = sd3_data(tmp_path, tiny_pipeline_no_t5, taught, **FULL)
    data["model"]["dtype"] = "bf16"
    config = build_config(data)
    context = make_context(prepare(config), config.model.open(), Ranks(), tmp_path)
    model, student = context.model, context.roles.student
    latents = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    prompts, t = model.encode_prompts(["a red circle", "a sign"]), torch.full((2,), 0.5)
    expected, frozen = model.decode(latents), model.velocity(latents, t, prompts)
    with torch.no_grad(), student.using():
        assert torch.equal(model.decode(latents), expected)
        own = model.velocity(latents, t, prompts)
    whole = SD3Transformer2DModel.from_pretrained(tiny_pipeline_no_t5 / "transformer")
    with torch.no_grad():
        precise = sd3_velocity(whole, latents, t, prompts, torch.float32)
    assert 1e-5 < (own - precise).norm() / precise.norm() < 0.02
    assert not torch.equal(own, frozen)


def test_it_starts_from_a_network_or_from_an_adapter_in_the_base(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    def start_of(place: Path) -> dict[str, torch.Tensor]:
        config = sd3_config(tmp_path, tiny_pipeline_no_t5, taught, start=str(place), **FULL)
        context = make_context(prepare(config), config.model.open(), Ranks(), tmp_path)
        return context.roles.student.tensors()

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


WORKER = Path(__file__).parent / "shares_worker.py"
FIRST_STEP = {
    "name": "opd",
    "weighting": "uniform",
    "steps": {"choose": "window", "count": 1, "slide_every": 99},
}
READ = {"check_rewards": False, "scorers": ["jpeg"]}
LARGEST = 4 * 32 * (9 * 32)
"""Bytes of the tiny transformer's largest tensor, a modulation."""


def runs(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is gathered for them must not be taken for the weights later.

    A probe and a reward that is only read come after what is trained on, without a gradient.
    """
    prompts = [{"path": data["tasks"]["shapes"]["prompts"]}]
    sampling = {"steps": 2, "guidance": 1.0}
    probe = {"every": 1, "prompts": prompts, "scorers": ["jpeg"], "sampling": sampling}
    rewarded = {name: task | {"reward": {"jpeg": 1}} for name, task in data["tasks"].items()}
    unguided = {"prompts": prompts, "reward": {"jpeg": 1}}
    grouped = {"prompts": 2, "images_per_prompt": 4, "micro": 2}
    return {
        "probed": data | {"probe": probe, "check_rewards": False, "updates": 2},
        "logged": data
        | READ
        | {"algorithm": FIRST_STEP | {"log_reward": True}, "tasks": rewarded, "updates": 2},
        "bf16": data
        | READ
        | {
            "model": data["model"] | {"dtype": "bf16"},
            "algorithm": {"name": "grpo"},
            "tasks": {"shapes": unguided},
            "batch": grouped,
            "updates": 1,
        },
    }


def test_batches_in_which_a_task_has_too_few_at_times_are_refused_at_once(
    tmp_path: Path,
    tiny_pipeline_no_t5: Path,
    taught: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 9 prompts dealt 4 to 1, the second task has 2 in the first two updates, and then 1."""
    data = sd3_data(tmp_path, tiny_pipeline_no_t5, taught, **FULL)
    data |= {"batch": {"prompts": 9, "images_per_prompt": 1, "micro": 4}, "updates": 12}
    data["tasks"]["shapes"]["share"] = 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FlowOPDError, match=r"'words' can have 1 images in an update"):
        prepare(build_config(data))
    prepare(build_config(data | {"updates": 2, "checkpoint": {"every": 1}}))
    prepare(build_config(data | {"student": {"rank": 4}}))


def test_two_processes_with_a_share_each_train_the_same_and_either_goes_on(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> None:
    short: dict[str, Any] = {
        "rollout": {"steps": 2, "guidance": 1.0, "sampler": "flow_sde"},
        "checkpoint": {"every": 1},
    }
    data = sd3_data(tmp_path, tiny_pipeline_no_t5, taught, **(FULL | short))
    two = runs(data)
    one = two | {"logged": two["logged"] | {"algorithm": FIRST_STEP, "tasks": data["tasks"]}}
    for name in one:
        train(prepare(build_config(one[name])), tmp_path / "one" / name)
    shutil.copytree(tmp_path / "one" / "probed", tmp_path / "two" / "probed")
    forget_the_end(tmp_path / "two" / "probed")
    orders = tmp_path / "two" / "orders.json"
    orders.write_text(json.dumps(two))
    ended = launch(torchrun(2, str(WORKER), str(orders)), tmp_path / "output.log")
    assert ended.code == 0, ended.output
    for name in ("probed", "logged"):
        same(tmp_path / "one" / name, tmp_path / "two" / name)
    rounded = [losses(tmp_path / place / "bf16") for place in ("one", "two")]
    assert rounded[0] == pytest.approx(rounded[1], abs=0.02)
    for rank in (0, 1):
        said = json.loads((tmp_path / "two" / f"said-{rank}.json").read_text())
        assert all(0 < most <= LARGEST for seen in said.values() for most in seen), said
    forget_the_end(tmp_path / "two" / "logged")
    train(prepare(build_config(two["logged"])), tmp_path / "two" / "logged")
    same(tmp_path / "one" / "logged", tmp_path / "two" / "logged")


def build_config(data: dict[str, Any]) -> TrainConfig:
    from flowopd.config import build

    return build(TrainConfig, data)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def same(first: Path, second: Path) -> None:
    """What they did, saved and gave."""
    assert losses(second) == pytest.approx(losses(first), rel=1e-4)
    found = [load_file(saved / "state.safetensors") for saved in checkpoints(first)]
    for saved, one in zip(checkpoints(second), found, strict=True):
        close(load_file(saved / "state.safetensors"), one)
    close(weights(second / "adapter"), weights(first / "adapter"))


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key != "random/torch":
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=2e-6, msg=key)
