"""What goes into the network and what comes out of it, against diffusers' pipeline itself.

A prompt's embedding depends on how many tokens T5 is given, even for a short prompt: SD3 passes no
mask, so that the encoder reads the padding. Training and evaluation have to agree on the number.
"""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flowopd.config import build
from flowopd.policy.generate import to_uint8
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3 import SD3Config, SD3Model
from flowopd.policy.text_cache import through_cache
from tiny_sd3 import JOINT_DIM, POOLED_DIM

CLIP_LENGTH = 77
SHORT = ["a red circle", "", "two green triangles and three yellow stars on a sign"]
LONG = " ".join(["a photo of a red circle above a blue square"] * 30)
"""More tokens than 256 of T5, and than CLIP's 77."""


def open_model(folder: Path, **settings: Any) -> SD3Model:
    defaults = {"dtype": "fp32", "device": "cpu"}
    return build(SD3Config, {"path": str(folder), **defaults, **settings}).open()


def open_pipeline(folder: Path, *, t5: bool = True, **options: Any) -> StableDiffusion3Pipeline:
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def theirs(pipeline: StableDiffusion3Pipeline, prompts: list[str], length: int) -> PromptEmbeds:
    sequence, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return PromptEmbeds(sequence, pooled)


def assert_same(found: PromptEmbeds, expected: PromptEmbeds) -> None:
    torch.testing.assert_close(found.sequence, expected.sequence)
    torch.testing.assert_close(found.pooled, expected.pooled)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: Path) -> StableDiffusion3Pipeline:
    return open_pipeline(tiny_pipeline)


# --- embeddings --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [128, 256])
def test_embeddings_at_the_lengths_in_use(
    tiny_pipeline: Path, pipeline: StableDiffusion3Pipeline, length: int
) -> None:
    found = open_model(tiny_pipeline, t5_length=length).encode_prompts([*SHORT, LONG])
    assert found.sequence.shape == (4, CLIP_LENGTH + length, JOINT_DIM)
    assert found.pooled.shape == (4, POOLED_DIM)
    assert_same(found, theirs(pipeline, [*SHORT, LONG], length))


def test_the_length_is_the_pipelines_where_none_is_said(
    tiny_pipeline: Path, pipeline: StableDiffusion3Pipeline
) -> None:
    parameters = inspect.signature(pipeline.__call__).parameters
    assert SD3Config(path="x").t5_length == parameters["max_sequence_length"].default == 256
    assert_same(open_model(tiny_pipeline).encode_prompts(SHORT), theirs(pipeline, SHORT, 256))


def test_the_length_matters_to_short_prompts_too(tiny_pipeline: Path) -> None:
    narrow, wide = (
        open_model(tiny_pipeline, t5_length=length).encode_prompts([*SHORT, LONG]).sequence
        for length in (128, 256)
    )
    assert torch.equal(narrow[:, :CLIP_LENGTH], wide[:, :CLIP_LENGTH])
    t5 = slice(CLIP_LENGTH, CLIP_LENGTH + 128)
    assert ((narrow[:, t5] - wide[:, t5]).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.parametrize("length", [128, 256])
def test_embeddings_of_a_pipeline_without_t5(tiny_pipeline_no_t5: Path, length: int) -> None:
    found = open_model(tiny_pipeline_no_t5, t5_length=length).encode_prompts([*SHORT, LONG])
    expected = theirs(open_pipeline(tiny_pipeline_no_t5, t5=False), [*SHORT, LONG], length)
    assert_same(found, expected)
    assert not found.sequence[:, CLIP_LENGTH:].any()
    assert found.sequence[:, :CLIP_LENGTH].any()


def test_t5_left_out_of_a_pipeline_that_has_it(tiny_pipeline: Path) -> None:
    found = open_model(tiny_pipeline, t5=False, t5_length=128).encode_prompts(SHORT)
    assert_same(found, theirs(open_pipeline(tiny_pipeline, t5=False), SHORT, 128))
    assert not found.sequence[:, CLIP_LENGTH:].any()


def test_the_empty_prompt_is_guidances_other_branch(
    tiny_pipeline: Path, pipeline: StableDiffusion3Pipeline
) -> None:
    with torch.no_grad():
        _, negative, _, pooled = pipeline.encode_prompt(
            SHORT[0], None, None, max_sequence_length=128
        )
    found = open_model(tiny_pipeline, t5_length=128).encode_prompts([""])
    assert_same(found, PromptEmbeds(negative, pooled))


def test_a_prompt_is_embedded_alike_whatever_stands_beside_it(tiny_pipeline: Path) -> None:
    model = open_model(tiny_pipeline, t5_length=128)
    together = model.encode_prompts([*SHORT, LONG])
    for index, prompt in enumerate([*SHORT, LONG]):
        assert_same(together.select([index]), model.encode_prompts([prompt]))


def test_embeddings_in_bf16_are_the_pipelines(tiny_pipeline: Path) -> None:
    from flowopd.policy.sd3_files import load_in

    found = open_model(tiny_pipeline, dtype="bf16", t5_length=128).encode_prompts(SHORT)
    expected = theirs(open_pipeline(tiny_pipeline, **load_in(torch.bfloat16)), SHORT, 128)
    assert found.sequence.dtype == torch.bfloat16
    assert_same(found, expected)


@pytest.mark.parametrize("t5", [True, False])
def test_the_text_cache_changes_nothing(tiny_pipeline: Path, tmp_path: Path, t5: bool) -> None:
    model = open_model(tiny_pipeline, t5=t5, t5_length=128)
    direct = model.encode_prompts([*SHORT, LONG])
    cached = through_cache(tmp_path, model, [*SHORT, LONG])([*SHORT, LONG])
    assert torch.equal(cached.sequence, direct.sequence)
    assert torch.equal(cached.pooled, direct.pooled)


# --- pictures ----------------------------------------------------------------------------------


def latents(height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, 16, height, width, generator=generator)


@torch.no_grad()
def their_picture(pipeline: StableDiffusion3Pipeline, x: Tensor, kind: str) -> Any:
    """As the pipeline's call ends."""
    config = pipeline.vae.config
    raw = pipeline.vae.decode(x / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    return pipeline.image_processor.postprocess(raw, output_type=kind)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12)])
def test_pictures_are_the_pipelines(
    tiny_pipeline: Path, pipeline: StableDiffusion3Pipeline, height: int, width: int
) -> None:
    model = open_model(tiny_pipeline)
    assert model.latent_shape(8 * height, 8 * width) == (16, height, width)
    x = latents(height, width)
    torch.testing.assert_close(model.decode(x), their_picture(pipeline, x, "pt"))
    ours = to_uint8(model.decode(x))
    expected = np.stack([np.asarray(image) for image in their_picture(pipeline, x, "pil")])
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1
    assert (ours == expected).mean() > 0.999


@pytest.mark.parametrize(("scale", "shift"), [(1.5305, 0.0609), (0.5, -0.3), (1.0, 0.0)])
def test_scale_and_shift_are_the_autoencoders_own(
    tiny_pipeline: Path, tmp_path: Path, scale: float, shift: float
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    config = folder / "vae" / "config.json"
    changes = {"scaling_factor": scale, "shift_factor": shift}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    found = open_model(folder).decode(latents())
    torch.testing.assert_close(found, their_picture(open_pipeline(folder), latents(), "pt"))
    as_published = open_model(tiny_pipeline).decode(latents())
    assert torch.allclose(found, as_published) is ((scale, shift) == (1.5305, 0.0609))
