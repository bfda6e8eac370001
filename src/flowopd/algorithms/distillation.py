"""Distillation of velocities: Equations (9), (13), (14) and (16).

Shapes: velocities [B, ...]; weights, divergences, advantages [B] or, over steps, [K, B].
"""

from typing import Literal

import torch
from torch import Tensor

from flowopd.algorithms.shapes import check_same, check_samples, mean_square
from flowopd.errors import FlowOPDError

LEAST_SPREAD = 1e-4
"""Of costs against their mean: what differs by less is rounding, and is not blown up."""


def weighted_divergence(student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`w_k mean_D (v_S - sg v_T)^2`, [B]: a term of (13), of (9) with the base, of (16) with the
    anchor. The target has no gradient."""
    check_same(student=student, target=target)
    check_samples(len(student), weight=weight)
    return weight * mean_square(student - target.detach())


def charged(divergences: Tensor, horizon: Literal["step", "trajectory"]) -> Tensor:
    """What the policy gradient (14) charges each step, [K, B] from KLs [K, B] in step order:
    its own KL, or with `trajectory` the sum of its own and those of all later steps."""
    if divergences.ndim != 2:
        raise FlowOPDError(
            f"divergences has shape {list(divergences.shape)}; it must be [steps, samples]."
        )
    if horizon == "step":
        return divergences.detach()
    return divergences.detach().flip(0).cumsum(0).flip(0)


def divergence_advantages(
    divergences: Tensor,
    pools: Tensor,
    *,
    horizon: Literal["step", "trajectory"],
    normalise: bool,
    clip: float,
) -> Tensor:
    """The advantages of (14), [K, B]: minus the detached KL that a step is charged.

    `normalise` centres them within a pool of samples (a task) at each step, and divides them by
    their deviation there: less variance, and one scale for all tasks.
    """
    costs = charged(divergences, horizon)
    check_samples(costs.shape[1], pools=pools)
    if not normalise:
        return (-costs).clamp(-clip, clip)
    advantages = torch.empty_like(costs)
    for pool in pools.unique():
        mine = pools == pool
        cost = costs[:, mine]
        centred = cost.mean(1, keepdim=True) - cost
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        lowest = LEAST_SPREAD * cost.abs().mean(1, keepdim=True) + torch.finfo(cost.dtype).tiny
        advantages[:, mine] = centred / torch.maximum(deviation, lowest)
    return advantages.clamp(-clip, clip)
