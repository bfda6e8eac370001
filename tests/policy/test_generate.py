"""Pictures depend on the prompt, the seed and the settings, and on nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.flow import NoiseSource
from flowopd.policy.generate import SamplingConfig, generate, not_finite, to_uint8
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3 import SD3Config, SD3Model
from flowopd.policy.text_cache import TextCache

PROMPTS = ["a red circle", "two green triangles", "a red circle", "the word hello", "a red circle"]
SEEDS = [3, 1, 4, 1, 5]
FAST = SamplingConfig(steps=3, guidance=3.0, height=32, width=48)


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path) -> SD3Model:
    return SD3Config(path=str(tiny_pipeline), dtype="fp32", device="cpu", t5_length=16).open()


def pictures(
    model: SD3Model,
    sampling: SamplingConfig = FAST,
    batch_size: int = 5,
    order: Sequence[int] = range(5),
    **options: Any,
) -> np.ndarray:
    batches = generate(
        model,
        [PROMPTS[i] for i in order],
        [SEEDS[i] for i in order],
        sampling,
        batch_size=batch_size,
        **options,
    )
    return np.concatenate(list(batches))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("kind", ["ode", "flow_sde", "cps"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_split_and_order_change_nothing(model: SD3Model, kind: Any, batch_size: int) -> None:
    sampling = FAST.model_copy(update={"sampler": kind})
    whole = pictures(model, sampling)
    assert whole.shape == (5, 32, 48, 3)
    assert whole.dtype == np.uint8
    split = pictures(model, sampling, batch_size)
    assert difference(split, whole) <= 1
    assert (split == whole).mean() > 0.999
    order = [4, 2, 0, 1, 3]
    assert difference(pictures(model, sampling, batch_size, order), whole[order]) <= 1


def test_pictures_are_the_pipelines(model: SD3Model, tiny_pipeline: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    latents = NoiseSource(SEEDS).draw((16, 4, 6))
    expected = pipeline(
        PROMPTS,
        latents=latents,
        num_inference_steps=3,
        guidance_scale=3.0,
        height=32,
        width=48,
        max_sequence_length=16,
    ).images
    ours = pictures(model)
    assert difference(ours, np.stack([np.asarray(image) for image in expected])) <= 1
    assert ours.std() > 10


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 4},
        {"guidance": 1.0},
        {"guidance": 0.0},
        {"shift": 1.0},
        {"sampler": "flow_sde"},
        {"sampler": "cps"},
        {"sampler": "flow_sde", "noise_level": 0.2},
        {"sampler": "flow_sde", "sde_window": (0, 1)},
        {"sampler": "flow_sde", "sde_window": (1, 1)},
    ],
    ids=str,
)
def test_every_setting_changes_the_picture(model: SD3Model, change: dict[str, Any]) -> None:
    changed = FAST.model_copy(update=change)
    plain = FAST.model_copy(update={"sampler": change.get("sampler", "ode")})
    if len(change) == 1:
        plain = FAST
    assert difference(pictures(model, changed), pictures(model, plain)) > 3


def test_seed_and_prompt_change_the_picture(model: SD3Model) -> None:
    images = pictures(model)
    assert difference(images[0], images[2]) > 3
    same_seed = pictures(model, order=[1, 3])
    assert difference(same_seed[0], same_seed[1]) > 3
    assert difference(same_seed, images[[1, 3]]) <= 1


class Counting:
    """The model's encoding, with a record of what was asked."""

    def __init__(self, model: SD3Model) -> None:
        self.model = model
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[str]) -> PromptEmbeds:
        self.asked += prompts
        return self.model.encode_prompts(prompts)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_repeated_prompts_are_encoded_once(model: SD3Model, guidance: float) -> None:
    encode = Counting(model)
    sampling = FAST.model_copy(update={"guidance": guidance})
    pictures(model, sampling, 2, encode=encode)
    expected = ([] if guidance == 1 else [""]) + ["a red circle", "two green triangles"]
    assert encode.asked == [*expected, "the word hello"]


def test_the_empty_prompt_is_the_unconditional_one(model: SD3Model) -> None:
    sequence = generate(model, [""], [0], FAST, batch_size=1)
    plain = FAST.model_copy(update={"guidance": 1.0})
    assert difference(next(sequence), next(generate(model, [""], [0], plain, batch_size=1))) <= 1


def test_a_text_cache_stands_in_for_the_encoders(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = SD3Config(path=str(tiny_pipeline), dtype="fp32", device="cpu", t5_length=16).open()
    cache = TextCache(tmp_path, model)
    expected = pictures(model)
    cache.fill([*PROMPTS, ""])
    model.drop_text_encoders()
    assert difference(pictures(model, batch_size=2, encode=cache.get), expected) <= 1


def test_progress_is_reported_and_batches_are_lazy(model: SD3Model) -> None:
    done: list[int] = []
    batches = generate(model, PROMPTS, SEEDS, FAST, batch_size=2, on_batch=done.append)
    assert done == []
    next(batches)
    assert done == [2]
    assert torch.is_grad_enabled()
    list(batches)
    assert done == [2, 2, 1]


class Broken:
    """A model that makes numbers of one latent, or of one picture, that are not finite."""

    def __init__(self, model: SD3Model, where: str, value: float) -> None:
        self._model, self._where, self._value = model, where, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def velocity(self, x: torch.Tensor, t: torch.Tensor, prompts: PromptEmbeds) -> torch.Tensor:
        return self._spoilt("latents", self._model.velocity(x, t, prompts))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        images = self._model.decode(latents.nan_to_num(0.0, 0.0, 0.0))
        return self._spoilt("pictures", images)

    def _spoilt(self, where: str, values: torch.Tensor) -> torch.Tensor:
        if where == self._where:
            values = values.clone()
            values[-1, 0, 0, 0] = self._value
        return values


@pytest.mark.parametrize("where", ["latents", "pictures"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pictures_that_are_not_finite_are_refused(
    model: SD3Model, where: str, value: float
) -> None:
    broken: Any = Broken(model, where, value)
    plain = FAST.model_copy(update={"guidance": 1.0})
    with pytest.raises(FlowOPDError) as caught:
        list(generate(broken, PROMPTS[:2], SEEDS[:2], plain, batch_size=2))
    assert "'two green triangles' with the seed 1 is not made of finite" in str(caught.value)
    assert "in float32" in str(caught.value)
    assert "look at the adapter" in str(caught.value)


def test_samples_that_are_not_finite_are_found() -> None:
    latents, images = torch.zeros(3, 4, 2, 2), torch.zeros(3, 3, 8, 8)
    assert not_finite(latents, images) == []
    latents[2, 0, 0, 0] = float("inf")
    images[0, 2, 7, 7] = float("nan")
    assert not_finite(latents, images) == [0, 2]
    assert not_finite(latents.to("meta"), images.to("meta")) == []


def test_to_uint8_rounds_and_clips() -> None:
    values = torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0])
    images = to_uint8(values.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert images.shape == (1, 1, 6, 3)
    assert images[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": [1]}, "5 prompts came with 1 seeds"),
        ({"prompts": [], "seeds": []}, "no prompt"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"sampling": FAST.model_copy(update={"height": 33})}, "height is 33"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_once(
    model: SD3Model, arguments: dict[str, Any], sentence: str
) -> None:
    good = {"prompts": PROMPTS, "seeds": SEEDS, "sampling": FAST, "batch_size": 2}
    with pytest.raises(FlowOPDError, match=sentence):
        generate(model, **(good | arguments))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["steps=-1"], "'steps' is -1"),
        (["steps=2.5"], r"'steps' is 2\.5"),
        (["guidance=-1"], "'guidance' is -1"),
        (["guidance=.nan"], "'guidance' is nan"),
        (["sampler=euler"], "'sampler' is 'euler'.*'ode', 'flow_sde' or 'cps'"),
        (["noise_level=0"], "'noise_level' is 0"),
        (["shift=0"], "'shift' is 0"),
        (["height=0"], "'height' is 0"),
        (["sampler=cps", "noise_level=1.1"], "between 0 and 1 for the sampler cps"),
        (["sampler=flow_sde", "steps=1"], "flow_sde needs 2 steps or more"),
        (["sampler=flow_sde", "steps=1", "sde_window=[0, 1]"], "needs 2 steps or more"),
        (["sde_window=[0, 2]"], "needs a stochastic sampler"),
        (["sampler=cps", "steps=4", "sde_window=[3, 2]"], "within the 4 steps"),
        (["sampler=cps", "sde_window=[-1, 2]"], "within the 40 steps"),
        (["sampler=cps", "sde_window=[1, 0]"], "within the 40 steps"),
    ],
)
def test_bad_settings_are_sentences(overrides: list[str], sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        load_config(SamplingConfig, None, overrides)
