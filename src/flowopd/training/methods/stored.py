"""A rollout that is kept, to be trained on afterwards, once or several times."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from flowopd.flow import (
    Kind,
    Sampler,
    Step,
    Transition,
    VelocityFn,
    mean_log_prob,
    rollout,
    transition,
)
from flowopd.training.method import Context, Method, Part


@dataclass(frozen=True)
class StoredStep:
    """A step as it was drawn, without gradients."""

    index: int
    x: Tensor
    t: Tensor
    t_next: Tensor
    x_next: Tensor
    velocity: Tensor
    transition: Transition
    log_prob: Tensor | None
    """Of the step under the policy that drew it; None for an ODE step."""

    def pick(self, kept: Tensor) -> "StoredStep":
        """Some of the samples."""
        rows = kept.to(self.x.device, non_blocking=True)
        move = replace(self.transition, **_rows(self.transition, rows))
        return replace(self, **_rows(self, rows), transition=move)


@dataclass(frozen=True)
class StoredPath:
    """The steps of one part that were asked for, and where the path ended: at x0 if whole."""

    steps: Mapping[int, StoredStep]
    x0: Tensor


@torch.no_grad()
def store(
    method: Method,
    part: Part,
    velocity: VelocityFn,
    keep: set[int],
    sampler: Sampler,
    *,
    whole: bool = True,
) -> StoredPath:
    """Draw a part's trajectories and keep some of their steps; to the end if they are `whole`."""
    x1, noise = method.start(part)
    walk = rollout(velocity, x1, method.context.sigmas, sampler=sampler, noise=noise)
    steps: dict[int, StoredStep] = {}
    x0 = x1
    for step in walk:
        x0 = step.x_next
        if step.index in keep:
            steps[step.index] = _stored(step)
        if not whole and step.index == max(keep):
            break
    return StoredPath(steps, x0)


def replay(context: Context, step: StoredStep, velocity: VelocityFn) -> tuple[Tensor, Transition]:
    """The velocity of another policy at a stored state, and its transition from there."""
    v = velocity(step.x, step.t)
    move = transition(
        _kind(context, step),
        step.x,
        v,
        step.t,
        step.t_next,
        noise_level=context.config.rollout.noise_level,
        t_clamp=float(context.sigmas[1]),
    )
    return v, move


def _rows(record: StoredStep | Transition, rows: Tensor) -> dict[str, Any]:
    """What a record has for each sample, of some samples."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {k: v[rows] for k, v in values.items() if isinstance(v, Tensor) and v.ndim}


def _stored(step: Step) -> StoredStep:
    log_prob = mean_log_prob(step.transition, step.x_next) if step.stochastic else None
    return StoredStep(
        step.index,
        step.x,
        step.t,
        step.t_next,
        step.x_next,
        step.velocity,
        step.transition,
        log_prob,
    )


def _kind(context: Context, step: StoredStep) -> Kind:
    return "ode" if step.log_prob is None else context.config.rollout.sampler
