"""The noise levels a sampler steps through: `[steps + 1]`, from 1 (noise) down to 0 (data)."""

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError

TRAINING_LEVELS = 1000
"""How many noise levels SD3 was trained on: its network is told t as a time step out of these,
and the lowest is the last one visited before 0."""


def shifted(t: Tensor, shift: float) -> Tensor:
    """SD3's shift `s t / (1 + (s - 1) t)`: with s > 1 more of the steps are spent near noise."""
    return shift * t / (1 + (shift - 1) * t)


def sigma_schedule(steps: int, *, shift: float = 1.0) -> Tensor:
    """The grid `1 = t_0 > t_1 > ... > t_T = 0` that StableDiffusion3Pipeline steps through.

    Even spacing from 1 to the lowest noise level of the training table, shifted, then 0. The
    table's lowest level is itself `shifted(1/1000)`; every level of the grid is shifted once.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise FlowOPDError(
            f"steps is {steps!r}; a schedule needs a whole number of steps, 1 or more."
        )
    if not 0 < shift < float("inf"):
        raise FlowOPDError(
            f"shift is {shift!r}; it must be above 0 (1 = even spacing, SD3 uses 3)."
        )
    lowest = shifted(torch.tensor(1 / TRAINING_LEVELS), shift).item()
    even = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return torch.cat([shifted(even, shift), even.new_zeros(1)]).to(torch.float32)
