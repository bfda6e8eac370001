"""Walking a velocity field from noise to data, one step at a time.

The walk is lazy: the velocity of a step is evaluated when that step is asked for, so that a caller
can train on a step while it happens and then go on. Nothing of the path is kept.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.flow.guidance import VelocityFn
from flowopd.flow.noise import NoiseSource
from flowopd.flow.transitions import (
    Kind,
    Transition,
    at_least_float32,
    check_kind,
    singular_at_one,
    transition,
)


@dataclass(frozen=True)
class Sampler:
    """How a rollout steps: `kind` at the steps `sde_steps` (None: at all), else the ODE."""

    kind: Kind = "ode"
    noise_level: float = 0.7
    sde_steps: frozenset[int] | None = None

    def kind_at(self, index: int) -> Kind:
        """The kind of step number `index`."""
        return self.kind if self.sde_steps is None or index in self.sde_steps else "ode"


def sde_window(start: int, size: int) -> frozenset[int]:
    """The step numbers of a window, for `Sampler.sde_steps`."""
    if start < 0 or size < 1:
        raise FlowOPDError(
            f"the SDE window starts at {start} and has {size} steps; "
            "it must start at 0 or later and have 1 step or more."
        )
    return frozenset(range(start, start + size))


@dataclass(frozen=True)
class Step:
    """One step of a rollout. `x` and `x_next` carry no gradient; `velocity` may."""

    index: int
    x: Tensor
    t: Tensor
    t_next: Tensor
    velocity: Tensor
    transition: Transition
    x_next: Tensor
    stochastic: bool
    """Whether noise was drawn, and so whether the step has a density."""


def rollout(
    velocity: VelocityFn,
    x1: Tensor,
    sigmas: Tensor,
    *,
    sampler: Sampler = Sampler(),
    noise: NoiseSource | None = None,
    grad_steps: Collection[int] = (),
) -> Iterator[Step]:
    """The steps from noise `x1` down the grid `sigmas`, lazily.

    The velocity is evaluated with gradient at `grad_steps` only; the next state is always detached.
    It is evaluated when its step is asked for, not here: with whatever weights, adapter and
    autocast are active at that moment.
    """
    levels = sigmas.detach().cpu()
    _check_levels(levels)
    _check_indices("grad_steps", grad_steps, len(levels) - 1)
    _check_indices("sde_steps", sampler.sde_steps or (), len(levels) - 1)
    _check_sampler(sampler, levels)
    _check_noise(sampler, noise, len(x1))
    if grad_steps:
        _check_gradients_possible()
    return _walk(velocity, x1, levels, sampler, noise, frozenset(grad_steps))


def _walk(
    velocity: VelocityFn,
    x1: Tensor,
    levels: Tensor,
    sampler: Sampler,
    noise: NoiseSource | None,
    grad_steps: frozenset[int],
) -> Iterator[Step]:
    x = at_least_float32(x1.detach())
    for index in range(len(levels) - 1):
        # The gradient mode is set and restored inside _take: around a yield it would leak out.
        step = _take(velocity, x, levels, index, sampler, noise, index in grad_steps)
        x = step.x_next
        yield step
        del step


def _take(
    velocity: VelocityFn,
    x: Tensor,
    levels: Tensor,
    index: int,
    sampler: Sampler,
    noise: NoiseSource | None,
    with_grad: bool,
) -> Step:
    t, t_next = (x.new_full((len(x),), float(level)) for level in levels[index : index + 2])
    kind = sampler.kind_at(index)
    if with_grad:
        _check_gradients_possible()
    with torch.set_grad_enabled(with_grad):
        v = velocity(x, t)
        move = transition(
            kind,
            x,
            v,
            t,
            t_next,
            noise_level=sampler.noise_level,
            t_clamp=float(levels[1]),
        )
    stochastic = _draws(sampler, index, float(levels[index + 1]))
    with torch.no_grad():
        drawn = noise.draw(x.shape[1:], x.device) if stochastic and noise else None
        x_next = move.mean.detach() if drawn is None else move.sample(drawn)
    return Step(index, x, t, t_next, v, move, x_next, stochastic)


def _draws(sampler: Sampler, index: int, t_next: float) -> bool:
    """Whether the step has a std that is not 0."""
    kind = sampler.kind_at(index)
    return sampler.noise_level > 0 and (kind == "flow_sde" or (kind == "cps" and t_next > 0))


def _check_levels(levels: Tensor) -> None:
    if levels.ndim != 1 or len(levels) < 2:
        raise FlowOPDError(
            f"sigmas has shape {list(levels.shape)}; it must be a list of two or more noise levels."
        )
    falling = bool((levels[1:] < levels[:-1]).all())
    if not falling or not 0 <= float(levels[-1]) <= float(levels[0]) <= 1:
        raise FlowOPDError(
            f"sigmas goes {levels.tolist()}; noise levels must fall at every step, within 1 to 0."
        )


def _check_indices(name: str, indices: Collection[int], steps: int) -> None:
    outside = sorted(index for index in indices if not 0 <= index < steps)
    if outside:
        raise FlowOPDError(
            f"{name} names {outside}, but the rollout has the steps 0 to {steps - 1}."
        )


def _check_sampler(sampler: Sampler, levels: Tensor) -> None:
    check_kind(sampler.kind)
    if sampler.kind_at(0) == "flow_sde" and levels[0] == 1 and levels[1] == 0:
        raise FlowOPDError(singular_at_one("0.0"))


def _check_gradients_possible() -> None:
    if torch.is_inference_mode_enabled():
        raise FlowOPDError(
            "the rollout has grad_steps and runs inside torch.inference_mode(), where nothing has "
            "a gradient; run it outside (its other steps keep no gradient anyway)."
        )


def _check_noise(sampler: Sampler, noise: NoiseSource | None, samples: int) -> None:
    if sampler.kind == "ode" or sampler.sde_steps == frozenset():
        return
    if noise is None:
        raise FlowOPDError(
            f"the sampler {sampler.kind} draws noise and got none; pass noise=NoiseSource(seeds)."
        )
    if len(noise) != samples:
        raise FlowOPDError(
            f"the noise source has {len(noise)} samples, but x1 has {samples}; they must match."
        )
