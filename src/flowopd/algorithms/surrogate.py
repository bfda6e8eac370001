"""The clipped surrogate: Equation (8). Shapes: everything [B], one number a sample."""

from typing import NamedTuple

import torch
from torch import Tensor

from flowopd.algorithms.shapes import check_samples


class Surrogate(NamedTuple):
    """The loss of each sample, and what is worth logging of it."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    """1 where clipping took the gradient away."""


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, *, clip: float
) -> Surrogate:
    """Equation (8) for log-probs that are means over dimensions (5)."""
    check_samples(
        len(log_prob), log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages
    )
    ratio = torch.exp(log_prob - old_log_prob.detach())
    plain = advantages * ratio
    cut = advantages * ratio.clamp(1 - clip, 1 + clip)
    clipped = (cut < plain).to(ratio.dtype)
    return Surrogate(-torch.minimum(plain, cut), ratio.detach(), clipped.detach())
