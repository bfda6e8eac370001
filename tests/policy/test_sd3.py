"""The SD3 family against diffusers' own pipeline, on tiny random pipelines of SD3.5's shape."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from flowopd.config import build, load_config
from flowopd.errors import FlowOPDError
from flowopd.flow import guided, rollout, sigma_schedule
from flowopd.policy import attention, sd3_transformer
from flowopd.policy.attention import PinnedAttention
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3 import SD3Config, SD3Model

PROMPTS = ["a red circle above a blue square", "two green triangles"]
T5_LENGTH = 24
STEPS = 6
TOLERANCE = 1e-4


def open_tiny(folder: Path, **settings: Any) -> SD3Model:
    defaults = {"dtype": "fp32", "device": "cpu", "t5_length": T5_LENGTH}
    return build(SD3Config, {"path": str(folder), **defaults, **settings}).open()


def open_pipeline(folder: Path, *, t5: bool) -> StableDiffusion3Pipeline:
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


def our_latents(model: SD3Model, x: Tensor, guidance: float, steps: int = STEPS) -> Tensor:
    cond = model.encode_prompts(PROMPTS)
    uncond = None if guidance == 1 else model.encode_prompts([""] * len(PROMPTS))
    velocity = guided(model.velocity, cond, uncond, guidance)
    for step in rollout(velocity, x, sigma_schedule(steps, shift=model.shift)):
        x = step.x_next
    return x


def their_output(
    pipeline: StableDiffusion3Pipeline, x: Tensor, guidance: float, output: str, steps: int = STEPS
) -> Tensor:
    with torch.no_grad():
        result = pipeline(
            PROMPTS,
            latents=x.clone(),
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=T5_LENGTH,
            output_type=output,
        )
    return torch.as_tensor(result.images)


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "no_t5"])
def both(
    request: pytest.FixtureRequest, tiny_pipeline: Path, tiny_pipeline_no_t5: Path
) -> tuple[SD3Model, StableDiffusion3Pipeline]:
    """The same folder opened by us and by diffusers."""
    folder = tiny_pipeline if request.param else tiny_pipeline_no_t5
    return open_tiny(folder), open_pipeline(folder, t5=request.param)


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path) -> SD3Model:
    return open_tiny(tiny_pipeline)


@pytest.fixture
def copied(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline folder to damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


# --- the same numbers as diffusers -----------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_ode_rollout_is_the_pipelines(both: Any, guidance: float, steps: int) -> None:
    ours, theirs = both
    x = noise()
    latents = our_latents(ours, x, guidance, steps)
    expected = their_output(theirs, x, guidance, "latent", steps)
    assert (latents - expected).abs().max() <= TOLERANCE
    assert (latents - x).abs().max() > 0.1


def test_guidance_and_the_prompt_matter(model: SD3Model) -> None:
    x = noise(1).repeat(2, 1, 1, 1)
    plain, strong = our_latents(model, x, 1.0), our_latents(model, x, 4.5)
    assert (plain - strong).abs().max() > 0.1
    assert (plain[0] - plain[1]).abs().max() > 0.1


def test_t5_matters(tiny_pipeline: Path, model: SD3Model) -> None:
    without = open_tiny(tiny_pipeline, t5=False)
    assert (our_latents(without, noise(), 1.0) - our_latents(model, noise(), 1.0)).abs().max() > 0.1


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_decoded_image_is_the_pipelines(both: Any, guidance: float) -> None:
    ours, theirs = both
    image = ours.decode(our_latents(ours, noise(), guidance))
    assert image.shape == (2, 3, 64, 64)
    assert image.dtype == torch.float32
    assert (image - their_output(theirs, noise(), guidance, "pt")).abs().max() <= TOLERANCE


def test_decode_uses_scale_and_shift(model: SD3Model) -> None:
    latents = noise()
    raw = model.vae.decode(latents / 1.5305 + 0.0609, return_dict=False)[0]
    assert torch.allclose(model.decode(latents), (raw / 2 + 0.5).clamp(0, 1), atol=1e-6)
    wrong = model.vae.decode(latents / 1.5305, return_dict=False)[0]
    assert (raw - wrong).abs().max() > 1e-2


def test_embeddings_are_encode_prompts(both: Any) -> None:
    ours, theirs = both
    with torch.no_grad():
        sequence, negative, pooled, negative_pooled = theirs.encode_prompt(
            PROMPTS, None, None, max_sequence_length=T5_LENGTH
        )
    embeds, empty = ours.encode_prompts(PROMPTS), ours.encode_prompts([""] * 2)
    assert embeds.sequence.shape == (2, 77 + T5_LENGTH, 48)
    torch.testing.assert_close(embeds.sequence, sequence)
    torch.testing.assert_close(embeds.pooled, pooled)
    torch.testing.assert_close(empty.sequence, negative)
    torch.testing.assert_close(empty.pooled, negative_pooled)


def test_many_prompts_are_encoded_in_order(model: SD3Model) -> None:
    prompts = [f"a photo of {number} stars" for number in range(35)]
    embeds = model.encode_prompts(prompts)
    for index in (0, 15, 16, 34):
        alone = model.encode_prompts([prompts[index]])
        torch.testing.assert_close(embeds.select([index]).sequence, alone.sequence)


# --- the model's parts -----------------------------------------------------------------------


def test_velocity_is_float32_whatever_the_precision(tiny_pipeline: Path, model: SD3Model) -> None:
    half = open_tiny(tiny_pipeline, dtype="bf16")
    assert half.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.transformer.parameters()} == {torch.bfloat16}
    t = torch.tensor([0.9, 0.3])
    v = half.velocity(noise(), t, half.encode_prompts(PROMPTS))
    assert v.dtype == torch.float32
    exact = model.velocity(noise(), t, model.encode_prompts(PROMPTS))
    assert (v - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert half.decode(noise()).dtype == torch.float32


def test_every_sample_has_its_own_noise_level(model: SD3Model) -> None:
    cond = model.encode_prompts(PROMPTS)
    mixed = model.velocity(noise(), torch.tensor([0.9, 0.3]), cond)
    alone = model.velocity(noise()[1:], torch.tensor([0.3]), cond.select([1]))
    assert torch.allclose(mixed[1:], alone, atol=1e-5)
    assert (model.velocity(noise(), torch.tensor([0.9, 0.9]), cond) - mixed)[1].abs().max() > 0.01


def test_velocity_refuses_shapes_that_do_not_match(model: SD3Model) -> None:
    cond = model.encode_prompts(PROMPTS)
    with pytest.raises(FlowOPDError, match=r"\[2, 1\]"):
        model.velocity(noise(), torch.ones(2, 1), cond)
    with pytest.raises(FlowOPDError, match="1 prompts"):
        model.velocity(noise(), torch.ones(2), cond.select([0]))


def test_latent_shape(model: SD3Model) -> None:
    assert model.latent_shape() == (16, 8, 8)
    assert model.latent_shape(32, 96) == (16, 4, 12)
    for height in (40, 0, -16, 208):
        with pytest.raises(FlowOPDError, match=r"multiple of 16 pixels, up to 192"):
            model.latent_shape(height, None)


def test_everything_is_frozen_and_described(model: SD3Model) -> None:
    assert not any(p.requires_grad for p in model.transformer.parameters())
    assert model.shift == 3.0
    assert model.lora_prefix == "transformer"
    names = [name for name, _ in model.transformer.named_modules()]
    for target in model.default_targets:
        assert any(name.endswith(f".{target}") for name in names)


def test_dropped_text_encoders_refuse_to_encode(tiny_pipeline: Path) -> None:
    model = open_tiny(tiny_pipeline)
    cond = model.encode_prompts(PROMPTS)
    model.drop_text_encoders()
    assert model._text._pipeline is None
    with pytest.raises(FlowOPDError, match="have been dropped"):
        model.encode_prompts(PROMPTS)
    assert model.velocity(noise(), torch.ones(2), cond).isfinite().all()


def test_embeddings_that_are_not_finite_are_refused(tiny_pipeline: Path) -> None:
    model = open_tiny(tiny_pipeline)
    model.encode_prompts(PROMPTS)
    encoder = model._text._pipeline.text_encoder_3
    with torch.no_grad():
        encoder.encoder.final_layer_norm.weight.fill_(torch.inf)
    with pytest.raises(FlowOPDError, match=r"'a red circle above a blue square'.* is not finite"):
        model.encode_prompts(PROMPTS)


def test_an_empty_list_of_prompts_is_refused(model: SD3Model) -> None:
    with pytest.raises(FlowOPDError, match="no prompt"):
        model.encode_prompts([])


def gradient_of_input(model: SD3Model, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    cond = model.encode_prompts(PROMPTS)
    model.velocity(x, torch.tensor([0.8, 0.4]), cond).square().mean().backward()
    assert x.grad is not None
    return x.grad


def test_gradient_checkpointing_changes_memory_and_no_gradient(
    tiny_pipeline: Path, model: SD3Model
) -> None:
    frugal = open_tiny(tiny_pipeline, gradient_checkpointing=True)
    assert frugal.transformer.is_gradient_checkpointing
    assert not model.transformer.is_gradient_checkpointing
    calls = []
    block = frugal.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(
        gradient_of_input(frugal, noise()), gradient_of_input(model, noise())
    )
    assert len(calls) == 2


def test_compile_is_of_every_block(tiny_pipeline: Path) -> None:
    model = SD3Config(path=str(tiny_pipeline), dtype="fp32", device="cpu", compile=True).open()
    blocks = model.transformer.transformer_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert model.transformer._compiled_call_impl is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_backend_is_used(
    tiny_pipeline: Path, model: SD3Model, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    pinned = open_tiny(
        tiny_pipeline, attention_backend="math", gradient_checkpointing=checkpointing
    )
    processors = pinned.transformer.attn_processors.values()
    assert all(isinstance(processor, PinnedAttention) for processor in processors)
    allowed = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        allowed.append(torch.backends.cuda.flash_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    gradient = gradient_of_input(pinned, noise())
    transformer_calls = [flash for flash in allowed if not flash]
    assert len(transformer_calls) == 5 * (2 if checkpointing else 1)
    assert torch.allclose(gradient, gradient_of_input(model, noise()), atol=1e-5)


def test_attention_backend_that_cannot_run_here_is_refused(tiny_pipeline: Path) -> None:
    with pytest.raises(FlowOPDError, match=r"'cudnn' does not run on cpu"):
        open_tiny(tiny_pipeline, attention_backend="cudnn")


def test_attention_backend_is_tried_where_and_as_it_will_compute(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may wait in host memory, and one that is trained is kept in float32."""
    tried: list[tuple[Any, ...]] = []
    gpu = torch.device("meta")
    monkeypatch.setattr(sd3_transformer, "pick_device", lambda name: gpu)
    monkeypatch.setattr(attention, "_try_out", lambda *given: tried.append(given))
    config = SD3Config(path=str(tiny_pipeline), device="cuda", attention_backend="flash")
    config.open_network(config.own_network(), torch.device("cpu"), torch.float32)
    assert tried == [("flash", 16, gpu, torch.bfloat16)]


def test_settings_say_how_prompts_were_embedded(tiny_pipeline_no_t5: Path, model: SD3Model) -> None:
    assert model.settings == {"revision": None, "t5": True, "t5_length": T5_LENGTH}
    assert open_tiny(tiny_pipeline_no_t5).settings["t5"] is False


# --- fingerprints and skeletons --------------------------------------------------------------


def fingerprint_of(folder: Path) -> str:
    return open_tiny(folder).fingerprint


def test_fingerprint_belongs_to_the_transformers_weights(
    tiny_pipeline: Path, tiny_pipeline_no_t5: Path, copied: Path
) -> None:
    before = fingerprint_of(tiny_pipeline)
    assert len(before) == 64
    assert fingerprint_of(copied) == before
    assert fingerprint_of(tiny_pipeline_no_t5) == before
    transformer = SD3Transformer2DModel.from_pretrained(copied, subfolder="transformer")
    with torch.no_grad():
        transformer.transformer_blocks[1].attn.to_q.weight.mul_(1.01)
    transformer.save_pretrained(copied / "transformer")
    assert fingerprint_of(copied) != before


def test_fingerprint_does_not_depend_on_shards(tiny_pipeline: Path, copied: Path) -> None:
    transformer = SD3Transformer2DModel.from_pretrained(copied, subfolder="transformer")
    shutil.rmtree(copied / "transformer")
    transformer.save_pretrained(copied / "transformer", max_shard_size="200KB")
    assert len(list((copied / "transformer").glob("*.safetensors"))) > 1
    assert fingerprint_of(copied) == fingerprint_of(tiny_pipeline)
    next(iter((copied / "transformer").glob("*-00002-*.safetensors"))).unlink()
    with pytest.raises(FlowOPDError, match=r"00002-of-.* missing"):
        SD3Config(path=str(copied)).check()


def test_text_key_tells_settings_apart(tiny_pipeline: Path, copied: Path) -> None:
    key = open_tiny(tiny_pipeline).text_key
    assert open_tiny(copied).text_key == key
    assert open_tiny(copied, t5_length=16).text_key != key
    assert open_tiny(copied, dtype="bf16").text_key != key
    assert open_tiny(copied, t5=False).text_key != key
    tokenizer = copied / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert open_tiny(copied).text_key != key


def test_skeleton_has_every_weight_and_no_memory(tiny_pipeline: Path, model: SD3Model) -> None:
    skeleton = SD3Config(path=str(tiny_pipeline)).skeleton()
    shapes = {name: p.shape for name, p in skeleton.named_parameters()}
    assert shapes == {name: p.shape for name, p in model.transformer.named_parameters()}
    assert all(p.is_meta for p in skeleton.parameters())


# --- bad input, before weights load ----------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any weight is a failure."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", refuse)


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes), encoding="utf-8")


def edit_scheduler(pipeline: Path, **changes: Any) -> None:
    edit_json(pipeline / "scheduler" / "scheduler_config.json", **changes)


def write_index(folder: Path, **index: Any) -> None:
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda p: (p / "model_index.json").unlink(), "no model_index.json"),
    "bad index": (
        lambda p: (p / "model_index.json").write_text("{", encoding="utf-8"),
        "cannot be read as JSON",
    ),
    "other pipeline": (
        lambda p: edit_json(p / "model_index.json", _class_name="FluxPipeline"),
        "holds a FluxPipeline; the family sd3 opens a StableDiffusion3Pipeline",
    ),
    "no transformer config": (
        lambda p: (p / "transformer" / "config.json").unlink(),
        r"transformer/config\.json is missing",
    ),
    "other transformer": (
        lambda p: edit_json(p / "transformer" / "config.json", _class_name="UNet2DModel"),
        "should be a SD3Transformer2DModel",
    ),
    "no transformer weights": (
        lambda p: (p / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
        r"transformer/diffusion_pytorch_model\.safetensors are missing",
    ),
    "half a download": (
        lambda p: truncate(p / "vae" / "diffusion_pytorch_model.safetensors"),
        r"vae/diffusion_pytorch_model\.safetensors has \d+ bytes where its header promises",
    ),
    "git-lfs pointer": (
        lambda p: (p / "text_encoder" / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8"
        ),
        r"text_encoder/model\.safetensors is no safetensors file",
    ),
    "no tokenizer": (lambda p: shutil.rmtree(p / "tokenizer_2"), "tokenizer_2 is missing"),
    "no scheduler": (
        lambda p: shutil.rmtree(p / "scheduler"),
        r"There is no file .*scheduler_config\.json",
    ),
    "other scheduler": (
        lambda p: edit_scheduler(p, _class_name="FlowMatchHeunDiscreteScheduler"),
        "is of a FlowMatchHeunDiscreteScheduler; it should be a FlowMatchEulerDiscreteScheduler",
    ),
    "dynamic shifting": (
        lambda p: edit_scheduler(p, use_dynamic_shifting=True),
        "sets use_dynamic_shifting to True, which is not supported",
    ),
    "karras": (lambda p: edit_scheduler(p, use_karras_sigmas=True), "use_karras_sigmas"),
    "exponential": (
        lambda p: edit_scheduler(p, use_exponential_sigmas=True),
        "use_exponential_sigmas",
    ),
    "beta": (lambda p: edit_scheduler(p, use_beta_sigmas=True), "use_beta_sigmas"),
    "terminal": (lambda p: edit_scheduler(p, shift_terminal=0.1), r"shift_terminal to 0\.1"),
    "inverted": (lambda p: edit_scheduler(p, invert_sigmas=True), "invert_sigmas"),
    "stochastic": (lambda p: edit_scheduler(p, stochastic_sampling=True), "stochastic_sampling"),
    "other levels": (
        lambda p: edit_scheduler(p, num_train_timesteps=500),
        "num_train_timesteps is 500; the family sd3 was trained on 1000",
    ),
    "shift in words": (lambda p: edit_scheduler(p, shift="three"), "shift is 'three'"),
    "shift of nothing": (lambda p: edit_scheduler(p, shift=None), "shift is None"),
    "shift of zero": (lambda p: edit_scheduler(p, shift=0), "shift is 0; it should be a number"),
    "index without shards": (
        lambda p: write_index(p / "transformer", weight_map={}),
        "index.json should have a weight_map that names the file of each tensor, and has '{}'",
    ),
    "index of a list": (lambda p: write_index(p / "vae", weight_map=["a"]), "weight_map"),
    "index of numbers": (lambda p: write_index(p / "vae", weight_map={"a": 1}), "weight_map"),
    "index of nothing": (lambda p: write_index(p / "vae"), "weight_map"),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder_is_refused(copied: Path, damage: Any) -> None:
    harm, sentence = damage
    harm(copied)
    with pytest.raises(FlowOPDError, match=sentence):
        SD3Config(path=str(copied)).check()
    with pytest.raises(FlowOPDError, match=sentence):
        SD3Config(path=str(copied)).open()


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "~/no/where"])
def test_missing_folder_is_refused(path: str) -> None:
    with pytest.raises(FlowOPDError, match="There is no folder"):
        SD3Config(path=path).check()


@pytest.mark.usefixtures("no_weights")
def test_t5_that_is_asked_for_must_be_there(tiny_pipeline_no_t5: Path) -> None:
    with pytest.raises(FlowOPDError, match=r"t5 is true, but .* has no text_encoder_3"):
        open_tiny(tiny_pipeline_no_t5, t5=True)
    SD3Config(path=str(tiny_pipeline_no_t5)).check()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("dtype=int8", "'dtype' is 'int8'.*'fp32', 'bf16' or 'fp16'"),
        ("t5_length=0", "'t5_length' is 0"),
        ("t5_length=1000", "'t5_length' is 1000"),
        ("attention_backend=turbo", "'attention_backend' is 'turbo'"),
        ("path=''", "'path' is ''"),
        ("dtpye=fp32", "Unknown key 'dtpye'. Did you mean 'dtype'"),
    ],
)
def test_bad_settings_are_sentences(override: str, sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        load_config(SD3Config, None, ["path=somewhere", override])


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xpu"])
def test_a_device_that_is_not_here_is_refused(tiny_pipeline: Path, device: str) -> None:
    with pytest.raises(FlowOPDError, match=f"device '{device}' cannot be used here"):
        SD3Config(path=str(tiny_pipeline), device=device).check()


def test_revision_of_a_folder_is_refused(tiny_pipeline: Path) -> None:
    with pytest.raises(FlowOPDError, match="no hub id"):
        SD3Config(path=str(tiny_pipeline), revision="main").check()


def test_relative_path_may_be_relative_to_the_recipe(copied: Path) -> None:
    recipe = copied.parent / "recipe.yaml"
    recipe.write_text("path: pipeline\n", encoding="utf-8")
    load_config(SD3Config, recipe).check()


# --- hub ids ---------------------------------------------------------------------------------


def test_hub_id_is_not_fetched_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    SD3Config(path="stabilityai/stable-diffusion-3.5-medium", revision="main").check()


def test_hub_id_is_fetched_and_checked_by_open(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(hub_id: str, **kwargs: Any) -> str:
        asked.update(kwargs, hub_id=hub_id)
        return str(tiny_pipeline)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    model = SD3Config(path="some/pipeline", revision="v1", t5=False, device="cpu").open()
    assert model.fingerprint == fingerprint_of(tiny_pipeline)
    assert asked["hub_id"] == "some/pipeline"
    assert asked["revision"] == "v1"
    assert "text_encoder_2/*" in asked["allow_patterns"]
    assert "text_encoder_3/*" not in asked["allow_patterns"]


def test_skeleton_of_a_hub_id_needs_the_config_only(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(hub_id: str, name: str, **kwargs: Any) -> str:
        asked.append((hub_id, name))
        return str(tiny_pipeline / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    skeleton = SD3Config(path="some/pipeline").skeleton()
    assert asked == [("some/pipeline", "transformer/config.json")]
    assert len(skeleton.transformer_blocks) == 3


def test_hub_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args: Any, **kwargs: Any) -> None:
        raise LocalEntryNotFoundError("the hub is out of reach")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    config = SD3Config(path="some/pipeline", revision="v1")
    for method in (config.open, config.skeleton):
        with pytest.raises(FlowOPDError, match=r"some/pipeline is no folder here.*revision v1"):
            method()


# --- records ---------------------------------------------------------------------------------


def embeds(batch: int, length: int = 3) -> PromptEmbeds:
    return PromptEmbeds(torch.randn(batch, length, 4), torch.randn(batch, 5))


def test_prompt_embeds_join_and_select() -> None:
    first, second = embeds(2), embeds(1)
    both = first.join(second)
    assert len(both) == 3
    assert torch.equal(both.select([2]).sequence, second.sequence)
    assert torch.equal(both.select(torch.tensor([1, 1])).pooled, first.pooled[[1, 1]])
    assert both.to(dtype=torch.bfloat16).pooled.dtype == torch.bfloat16
    with pytest.raises(FlowOPDError, match="one shape"):
        first.join(embeds(1, length=4))
    with pytest.raises(FlowOPDError, match="nothing"):
        PromptEmbeds.cat([])
    with pytest.raises(FlowOPDError, match=r"\[B,L,C\]"):
        PromptEmbeds(torch.randn(2, 3), torch.randn(2, 5))
