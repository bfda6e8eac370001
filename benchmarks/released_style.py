"""The same distillation, worked as the code released with the paper works. A baseline.

Whole trajectories are sampled first and every picture is decoded; then each of the T steps gets a
training forward of the student, a forward of its teacher and one of the anchor. The student is a
LoRA that PEFT applies beside a base in bf16, under autocast; each teacher and the anchor is a whole
transformer of its own, in float32 and outside autocast, whose products may use TF32.

Kinder than the original, which keeps the student's base in float32, too, and scores the pictures.
Shapes: B samples, L tokens; latents [B,C,H,W].
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import PeftModel
from torch import Tensor, nn

from flowopd.policy.protocol import PromptEmbeds

FrozenIn = Literal["tf32", "float32", "autocast"]
"""How the teachers and the anchor compute: in float32 with TF32's products, as the original does;
in plain float32; or as fast as the student, which the original could have."""


@dataclass(frozen=True)
class Settings:
    """What both sides of the comparison have in common."""

    steps: int
    guidance: float
    shift: float
    noise_level: float
    anchor_weight: float
    learning_rate: float
    clip_norm: float
    frozen_in: FrozenIn = "tf32"


@dataclass(frozen=True)
class Prompts:
    """Samples of one task that go through the network together."""

    task: str
    cond: PromptEmbeds
    uncond: PromptEmbeds
    start_seeds: Sequence[int]
    seeds: Sequence[int]
    latent_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Trajectory:
    """Every state of a batch of samples, and the pictures at the end."""

    states: Sequence[Tensor]
    images: Tensor


class ReleasedStyle:
    """A student, its teachers and an anchor, each a network of its own."""

    def __init__(
        self,
        transformer: nn.Module,
        vae: Any,
        adapters: Mapping[str, Path],
        settings: Settings,
        *,
        device: torch.device,
    ) -> None:
        """`adapters` are folders: `student`, `anchor`, and for every task its teacher.

        The transformer becomes the student's; the others get copies.
        """
        self.settings, self.vae, self.device = settings, vae, device
        self.frozen = {
            name: _frozen_copy(transformer, folder)
            for name, folder in adapters.items()
            if name != "student"
        }
        self.student = PeftModel.from_pretrained(
            transformer, adapters["student"], is_trainable=True
        )
        self.student.train()
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=1e-4
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=settings.shift)
        scheduler.set_timesteps(settings.steps)
        self.timesteps, self.sigmas = scheduler.timesteps.to(device), scheduler.sigmas.to(device)

    def update(self, batches: Sequence[Prompts]) -> None:
        """Sample everything, then train on everything, then step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(batches)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()

    def backward(self, batches: Sequence[Prompts]) -> None:
        with _tf32(self.settings.frozen_in == "tf32" and self.device.type == "cuda"):
            trajectories = [self._sample(batch) for batch in batches]
            total = sum(len(batch.seeds) for batch in batches)
            for batch, trajectory in zip(batches, trajectories, strict=True):
                for k in range(self.settings.steps):
                    loss = self._loss(batch, trajectory.states[k], k)
                    (loss.sum() / total / self.settings.steps).backward()

    def gradients(self) -> dict[str, Tensor]:
        """The student's gradients, by the keys of an adapter file."""
        found = {}
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                key = name.removeprefix("base_model.model.").replace(".default.", ".")
                found[key] = parameter.grad
        return found

    @torch.no_grad()
    def _sample(self, batch: Prompts) -> Trajectory:
        first = _streams(batch.start_seeds)
        way = _streams(batch.seeds)
        x = _draw(first, batch.latent_shape, self.device)
        states = []
        for k in range(self.settings.steps):
            states.append(x)
            mean, std = self._move(x, self._student_velocity(batch, x, k), k)
            x = mean + std * _draw(way, batch.latent_shape, self.device)
        return Trajectory(states, self._decode(x))

    def _decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        latents = latents / config.scaling_factor + config.shift_factor
        images = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1).cpu()

    def _loss(self, batch: Prompts, x: Tensor, k: int) -> Tensor:
        """The KL to the teacher and that to the anchor [B], by the means of the next states."""
        mean, std = self._move(x, self._student_velocity(batch, x, k), k)
        loss = torch.zeros(len(x), device=self.device)
        for name, weight in ((batch.task, 1.0), ("anchor", self.settings.anchor_weight)):
            with torch.no_grad():
                target, _ = self._move(x, self._frozen_velocity(name, batch, x, k), k)
            loss = loss + weight * (mean - target).square().mean((1, 2, 3)) / (2 * std**2)
        return loss

    def _student_velocity(self, batch: Prompts, x: Tensor, k: int) -> Tensor:
        with self._autocast(batch):
            return self._guided(self.student, batch, x, k, batch.cond.sequence.dtype)

    def _frozen_velocity(self, name: str, batch: Prompts, x: Tensor, k: int) -> Tensor:
        if self.settings.frozen_in != "autocast":
            return self._guided(self.frozen[name], batch, x, k, torch.float32)
        with self._autocast(batch):
            return self._guided(self.frozen[name], batch, x, k, torch.float32)

    def _autocast(self, batch: Prompts) -> contextlib.AbstractContextManager[Any]:
        dtype = batch.cond.sequence.dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _guided(
        self, network: nn.Module, batch: Prompts, x: Tensor, k: int, dtype: torch.dtype
    ) -> Tensor:
        both = torch.cat([x, x]).to(dtype)
        v_uncond, v_cond = (
            network(
                hidden_states=both,
                timestep=self.timesteps[k].expand(len(both)),
                encoder_hidden_states=torch.cat([batch.uncond.sequence, batch.cond.sequence]).to(
                    dtype
                ),
                pooled_projections=torch.cat([batch.uncond.pooled, batch.cond.pooled]).to(dtype),
                return_dict=False,
            )[0]
            .float()
            .chunk(2)
        )
        return v_uncond + self.settings.guidance * (v_cond - v_uncond)

    def _move(self, x: Tensor, v: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the next state by Flow-SDE, with t_1 for t = 1 in the root."""
        sigma, dt = self.sigmas[k], self.sigmas[k + 1] - self.sigmas[k]
        inner = self.sigmas[1] if k == 0 else sigma
        noise = self.settings.noise_level * torch.sqrt(inner / (1 - inner))
        drift = noise**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + v * (1 + drift * (1 - sigma)) * dt
        return mean, noise * torch.sqrt(-dt)


def _frozen_copy(transformer: nn.Module, adapter: Path) -> nn.Module:
    network = PeftModel.from_pretrained(nn.Module.float(copy.deepcopy(transformer)), adapter)
    return network.requires_grad_(False).eval()


def _streams(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _draw(streams: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.stack([torch.randn(*shape, generator=one) for one in streams]).to(device)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 matrices may use TF32 inside."""
    before = torch.get_float32_matmul_precision()
    if allowed:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
