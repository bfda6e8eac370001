"""Stable Diffusion 3 without weights: the bytes that it would have, to the last one."""

from pathlib import Path

import pytest
import torch
from torch import nn
from true_size import save_configurations

from flowopd.errors import FlowOPDError
from flowopd.planning.attention import fused_attention
from flowopd.planning.memory import LiveMemory
from flowopd.planning.outline import bytes_of, open_outline, outlined, parameters_of
from flowopd.policy.sd3 import Precision, SD3Config
from flowopd.policy.weight_files import read_header, weight_files


def config(folder: Path, **changes: object) -> SD3Config:
    return SD3Config(path=str(folder), device="cpu", **changes)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_part_holds_what_it_holds_when_it_is_loaded(
    tiny_pipeline: Path, dtype: Precision
) -> None:
    settings = config(tiny_pipeline, dtype=dtype, vae_dtype=dtype)
    outline, model = open_outline(outlined(settings)), settings.open()
    model._text.encode(["a prompt"])
    pipeline = model._text._pipeline
    assert bytes_of(outline.transformer) == bytes_of(model.transformer)
    assert bytes_of(outline.vae) == bytes_of(model.vae)
    for name, encoder in outline.encoders.items():
        assert bytes_of(encoder) == bytes_of(getattr(pipeline, name)), name


def test_the_weights_are_those_of_the_files(tiny_pipeline: Path) -> None:
    outline = open_outline(outlined(config(tiny_pipeline, dtype="bf16")))
    files = weight_files(tiny_pipeline / "transformer", "diffusion_pytorch_model")
    sizes = [
        torch.Size(entry["shape"]).numel()
        for file in files
        for entry in read_header(file).tensors.values()
    ]
    assert bytes_of(outline.transformer) == 2 * sum(sizes)


def test_embeddings_and_latents_have_the_models_shapes(tiny_pipeline: Path) -> None:
    settings = config(tiny_pipeline, t5_length=20)
    outline, model = open_outline(outlined(settings)), settings.open()
    planned, made = outline.encode_prompts(["a", "b"]), model.encode_prompts(["a", "b"])
    assert planned.sequence.shape == made.sequence.shape
    assert planned.pooled.shape == made.pooled.shape
    assert planned.sequence.dtype == made.sequence.dtype
    assert outline.latent_shape(32, 64) == model.latent_shape(32, 64)


def test_without_t5_there_are_two_encoders(tiny_pipeline: Path) -> None:
    outline = open_outline(outlined(config(tiny_pipeline, t5=False)))
    assert list(outline.encoders) == ["text_encoder", "text_encoder_2"]


def test_the_true_size_from_configurations_alone(tmp_path: Path) -> None:
    outline = open_outline(outlined(config(save_configurations(tmp_path))))
    assert parameters_of(outline.transformer) == pytest.approx(2.243e9, rel=1e-3)
    assert parameters_of(*outline.encoders.values()) == pytest.approx(5.58e9, rel=1e-3)
    positions = 2 * 384 * 384 * 1536
    parameters = 2 * parameters_of(outline.transformer)
    assert bytes_of(outline.transformer) == parameters + positions
    with LiveMemory() as memory, fused_attention():
        outline.run_encoders()
        encoding, memory.peak = memory.peak, memory.live
        with torch.no_grad():
            outline.decode(torch.empty(4, 16, 64, 64, device="meta"))
    assert 0.3e9 < encoding < 1e9
    # Of four pictures, a few of the widest tensors at a time: 256 channels of 512 x 512 numbers.
    assert 2 < memory.peak / (4 * 256 * 512 * 512 * 4) < 6


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    save_configurations(tmp_path)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(FlowOPDError, match=r"There is no file .*vae/config.json"):
        open_outline(outlined(config(tmp_path)))


def test_a_hub_that_cannot_be_reached_is_a_sentence() -> None:
    settings = SD3Config(path="somebody/some-pipeline-that-is-not-here")
    with pytest.raises(FlowOPDError) as caught:
        open_outline(outlined(settings))
    assert "Planning needs the configuration files of somebody/some-pipeline" in str(caught.value)
    assert "model_index.json cannot be fetched" in str(caught.value)


def test_what_is_shared_counts_once() -> None:
    layer = nn.Linear(10, 10, bias=False)
    twice = nn.Sequential(layer, nn.Linear(10, 10, bias=False))
    twice[1].weight = layer.weight
    assert bytes_of(twice, layer) == 400
    assert parameters_of(twice) == 100
