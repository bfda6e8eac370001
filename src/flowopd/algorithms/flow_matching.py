"""Losses on clean latents: flow matching (10) and DiffusionNFT (17).

Shapes: x0, x1, x_t, velocities [B, ...]; t, advantages, losses [B].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowopd.algorithms.shapes import check_same, check_samples, mean_square
from flowopd.flow.transitions import per_sample


def noised(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """`x_t = (1 - t) x0 + t x1`."""
    check_same(x0=x0, x1=x1)
    check_samples(len(x0), t=t)
    return torch.lerp(x0, x1, per_sample(t, x0))


def flow_matching(velocity: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Equation (10), [B]."""
    check_same(velocity=velocity, x0=x0, x1=x1)
    return mean_square(velocity - (x1 - x0))


class NFT(NamedTuple):
    loss: Tensor
    optimality: Tensor
    """r of (17)."""


def diffusion_nft(
    student: Tensor,
    old: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    highest: float,
) -> NFT:
    """Equation (17) without its KL, [B]; `highest` is A_max."""
    check_same(student=student, old=old, x0=x0, x_t=x_t)
    check_samples(len(x0), t=t, advantages=advantages)
    old = old.detach()
    r = (advantages / (2 * highest) + 0.5).clamp(0, 1)
    v_plus = beta * student + (1 - beta) * old
    v_minus = (1 + beta) * old - beta * student
    positive = _reconstruction(v_plus, x0, x_t, t)
    negative = _reconstruction(v_minus, x0, x_t, t)
    return NFT(highest / beta * (r * positive + (1 - r) * negative), r.detach())


def _reconstruction(velocity: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """`mean_D (x̂0 - x0)^2 / w`, with `w = max(1e-5, sg mean_D |x̂0 - x0|)`."""
    error = x_t - per_sample(t, x_t) * velocity - x0
    scale = error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
    return mean_square(error) / scale
