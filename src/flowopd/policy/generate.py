"""Pictures from a velocity model. A picture depends on its prompt, its seed and the settings."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from flowopd.config import Config
from flowopd.errors import FlowOPDError
from flowopd.flow import Kind, NoiseSource, Sampler, guided, rollout, sde_window, sigma_schedule
from flowopd.policy.protocol import PromptEmbeds, VelocityModel

Encode = Callable[[Sequence[str]], PromptEmbeds]
Images = NDArray[np.uint8]
"""[B,H,W,3]."""
Side = Annotated[int, Field(ge=1)]


class SamplingConfig(Config):
    """How pictures are drawn from a model."""

    steps: int = Field(40, ge=1)
    guidance: float = Field(4.5, ge=0, allow_inf_nan=False, description="w of (1); 1 is none.")
    shift: float | None = Field(None, gt=0, description="null: the model's own.")
    sampler: Kind = "ode"
    noise_level: float = Field(0.7, gt=0, allow_inf_nan=False, description="a of (2) and (3).")
    sde_window: tuple[int, int] | None = Field(
        None, description="First step and number of the steps that are stochastic; null: all."
    )
    height: Side | None = Field(None, description="Pixels; null: the model's own size.")
    width: Side | None = None

    @model_validator(mode="after")
    def _sampler_fits(self) -> Self:
        if self.sampler == "cps" and self.noise_level > 1:
            raise ValueError("noise_level must lie between 0 and 1 for the sampler cps")
        if self.sampler == "flow_sde" and self.steps == 1:
            raise ValueError("the sampler flow_sde needs 2 steps or more; use more, or ode")
        usual = type(self).model_fields["noise_level"].default
        if self.sampler == "ode" and self.noise_level != usual:
            raise ValueError(
                "noise_level would do nothing with the sampler ode; leave it out (or give "
                f"{usual} where it comes from shared defaults)"
            )
        if self.sde_window is None:
            return self
        start, size = self.sde_window
        if self.sampler == "ode":
            raise ValueError("sde_window needs a stochastic sampler (flow_sde or cps)")
        if start < 0 or size < 1 or start + size > self.steps:
            raise ValueError(f"sde_window must lie within the {self.steps} steps")
        return self

    def flow_sampler(self) -> Sampler:
        window = None if self.sde_window is None else sde_window(*self.sde_window)
        return Sampler(self.sampler, self.noise_level, window)


def generate(
    model: VelocityModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    batch_size: int,
    encode: Encode | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[Images]:
    """One picture for each prompt with its seed, in order, a batch at a time.

    A prompt that comes more than once is encoded once. `encode` replaces the model's own encoding
    (a text cache); `on_batch` is told how many pictures each batch had.
    """
    if len(prompts) != len(seeds):
        raise FlowOPDError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one each.")
    if not prompts:
        raise FlowOPDError("There is no prompt to draw; give at least one.")
    if batch_size < 1:
        raise FlowOPDError(f"The batch size is {batch_size}; it should be 1 or more.")
    model.latent_shape(sampling.height, sampling.width)
    return _batches(
        model, prompts, seeds, sampling, batch_size, encode or model.encode_prompts, on_batch
    )


@torch.no_grad()
def sample_latents(
    model: VelocityModel,
    cond: PromptEmbeds,
    uncond: PromptEmbeds | None,
    seeds: Sequence[int],
    sampling: SamplingConfig,
) -> Tensor:
    """Clean latents [B,C,h,w] of embedded prompts; `uncond` is one empty prompt, or None."""
    noise = NoiseSource(seeds)
    x = noise.draw(model.latent_shape(sampling.height, sampling.width), model.device)
    everyone_uncond = None if uncond is None else uncond.select([0] * len(cond))
    velocity = guided(model.velocity, cond, everyone_uncond, sampling.guidance)
    shift = model.shift if sampling.shift is None else sampling.shift
    sigmas = sigma_schedule(sampling.steps, shift=shift)
    for step in rollout(velocity, x, sigmas, sampler=sampling.flow_sampler(), noise=noise):
        x = step.x_next
    return x


def to_uint8(images: Tensor) -> Images:
    """[B,3,H,W] in [0,1] to [B,H,W,3] in 0..255."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def not_finite(latents: Tensor, images: Tensor) -> list[int]:
    """The samples of a batch whose latents or pictures hold a NaN or an infinity.

    As bytes they would be black, and scored like any other. Without numbers (meta) there are none.
    """
    if latents.is_meta:
        return []
    good = [values.isfinite().flatten(1).all(1) for values in (latents, images)]
    return [i for i, fine in enumerate((good[0] & good[1]).tolist()) if not fine]


def _no_picture(model: VelocityModel, prompt: str, seed: int) -> FlowOPDError:
    dtype = str(model.dtype).removeprefix("torch.")
    return FlowOPDError(
        f"The picture of the prompt {prompt!r} with the seed {seed} is not made of finite numbers "
        f"({model.name} in {dtype}). Try model.dtype=bf16 or fp32; if that does not help, look at "
        "the adapter: its weights may be too large or broken."
    )


def _batches(
    model: VelocityModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    batch_size: int,
    encode: Encode,
    on_batch: Callable[[int], None] | None,
) -> Iterator[Images]:
    embeddings = _Embeddings(encode, prompts, model.device)
    uncond = None if sampling.guidance == 1 else encode([""]).to(model.device)
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        cond = embeddings.take(prompts[batch])
        with torch.no_grad():
            latents = sample_latents(model, cond, uncond, seeds[batch], sampling)
            decoded = model.decode(latents)
            broken = not_finite(latents, decoded)
            if broken:
                raise _no_picture(model, prompts[batch][broken[0]], seeds[batch][broken[0]])
            images = to_uint8(decoded)
        if on_batch is not None:
            on_batch(len(images))
        yield images


class _Embeddings:
    """Each prompt encoded when it first comes, and kept until it has come for the last time."""

    def __init__(self, encode: Encode, prompts: Sequence[str], device: torch.device) -> None:
        self._encode = encode
        self._left = Counter(prompts)
        self._kept: dict[str, PromptEmbeds] = {}
        self._device = device

    def take(self, prompts: Sequence[str]) -> PromptEmbeds:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if new:
            embeds = self._encode(new).to(self._device)
            self._kept.update({prompt: embeds.select([i]) for i, prompt in enumerate(new)})
        taken = PromptEmbeds.cat([self._kept[prompt] for prompt in prompts])
        self._left.subtract(prompts)
        for prompt in set(prompts):
            if not self._left[prompt]:
                del self._kept[prompt]
        return taken
