"""Every part of a pipeline's folder: whole or refused, and told from another of its kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.policy.sd3 import SD3Config
from flowopd.study.identity import model_identity

CORE, ENCODER = "diffusion_pytorch_model.safetensors", "model.safetensors"
PARTS = [
    ("text_encoder", ENCODER, "text_projection.weight"),
    ("text_encoder_2", ENCODER, "text_model.final_layer_norm.bias"),
    ("text_encoder_3", ENCODER, "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("text_encoder_3", ENCODER, "shared.weight"),
    ("transformer", CORE, "pos_embed.proj.weight"),
    ("vae", CORE, "decoder.conv_in.weight"),
]


@pytest.fixture
def copied(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline folder to change."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def read(file: Path) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in load_file(file).items()}


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def config_of(folder: Path) -> SD3Config:
    return SD3Config(path=str(folder), dtype="fp32", device="cpu", t5_length=16)


def encode(folder: Path) -> Tensor:
    return config_of(folder).open().encode_prompts(["a red circle"]).sequence


@pytest.mark.parametrize(("part", "name", "key"), PARTS)
def test_a_tensor_that_is_missing_is_refused(copied: Path, part: str, name: str, key: str) -> None:
    tensors = read(copied / part / name)
    del tensors[key]
    write(copied / part / name, tensors)
    with pytest.raises(FlowOPDError, match=rf"/{part} lack .*{key}"):
        encode(copied)


@pytest.mark.parametrize(("part", "name", "key"), PARTS)
def test_a_tensor_of_another_shape_is_refused(copied: Path, part: str, name: str, key: str) -> None:
    tensors = read(copied / part / name)
    write(copied / part / name, tensors | {key: torch.zeros(3, 3)})
    with pytest.raises(FlowOPDError, match=rf"/{part} have another shape of {key}"):
        encode(copied)


def test_no_more_than_a_few_keys_are_named(copied: Path) -> None:
    tensors = read(copied / "vae" / CORE)
    write(copied / "vae" / CORE, dict(list(tensors.items())[6:]))
    with pytest.raises(FlowOPDError, match=r"lack ([\w.]+, ){3}[\w.]+ and 2 more, which"):
        encode(copied)


@pytest.mark.parametrize(
    "stored",
    [["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]],
    ids=["the encoder's", "both"],
)
def test_t5s_tied_embedding_may_have_either_name(
    tiny_pipeline: Path, copied: Path, stored: list[str]
) -> None:
    tensors = read(copied / "text_encoder_3" / ENCODER)
    tied = tensors.pop("shared.weight")
    write(copied / "text_encoder_3" / ENCODER, tensors | {key: tied.clone() for key in stored})
    assert torch.equal(encode(copied), encode(tiny_pipeline))


def test_a_buffer_of_older_clips_is_no_fault(tiny_pipeline: Path, copied: Path) -> None:
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    write(copied / "text_encoder" / ENCODER, read(copied / "text_encoder" / ENCODER) | old)
    assert torch.equal(encode(copied), encode(tiny_pipeline))


def change_weights(folder: Path, part: str, name: str, key: str) -> None:
    tensors = read(folder / part / name)
    tensors[key] += 1
    write(folder / part / name, tensors)


def change_json(file: Path, **changes: float) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_weights(folder, "vae", CORE, "decoder.conv_in.weight"),
        lambda folder: change_weights(folder, "text_encoder", ENCODER, "text_projection.weight"),
        lambda folder: change_weights(folder, "text_encoder_3", ENCODER, "shared.weight"),
        lambda folder: change_json(folder / "vae" / "config.json", scaling_factor=1.0),
        lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", shift=1.0),
    ],
    ids=["vae", "clip", "t5", "vae's scale", "shift"],
)
def test_what_stands_around_the_transformer_tells_pictures_apart_and_no_adapters(
    tiny_pipeline: Path, copied: Path, change: Callable[[Path], None]
) -> None:
    before = config_of(tiny_pipeline)
    assert model_identity(config_of(copied)) == model_identity(before)
    change(copied)
    assert model_identity(config_of(copied)) != model_identity(before)
    assert config_of(copied).fingerprint() == before.fingerprint()


def test_the_surroundings_of_a_hub_id_are_not_known() -> None:
    assert config_of(Path("org/name")).surroundings() == {}
