"""Classifier-free guidance: the only place that combines the two branches of a network."""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.flow.transitions import at_least_float32


class Condition(Protocol):
    """What a velocity is conditioned on, one entry per sample: embedded prompts, for one."""

    def __len__(self) -> int: ...

    def join(self, other: Self, /) -> Self:
        """This condition's entries, then the other's."""
        ...


ConditionT = TypeVar("ConditionT", bound=Condition)
VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""`(x [B, ...], t [B]) -> v [B, ...]`."""
ConditionalVelocity = Callable[[Tensor, Tensor, ConditionT], Tensor]
"""`(x [B, ...], t [B], condition) -> v [B, ...]`."""


def forwards_of(scale: float) -> int:
    """How often a sample goes through the network for one guided velocity."""
    return 1 if scale == 1 else 2


def combine_guidance(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """Equation (1)."""
    v_cond, v_uncond = at_least_float32(v_cond), at_least_float32(v_uncond)
    return v_uncond + scale * (v_cond - v_uncond)


def guided(
    velocity: ConditionalVelocity[ConditionT],
    cond: ConditionT,
    uncond: ConditionT | None,
    scale: float,
) -> VelocityFn:
    """`velocity` with its condition and guidance (1) bound: one forward of the network per call.

    At `scale` 1 the batch is the samples'; otherwise it is twice that, `[uncond; cond]`.
    """
    if scale == 1:
        return lambda x, t: velocity(x, t, cond)
    if uncond is None:
        raise FlowOPDError(
            f"guidance is {scale}, but there is no unconditional embedding to guide away from; "
            "pass that of the empty prompt, or use guidance 1."
        )
    if len(uncond) != len(cond):
        raise FlowOPDError(
            f"guidance got {len(uncond)} unconditional embeddings for {len(cond)} prompts; "
            "it needs one for each."
        )
    both = uncond.join(cond)

    def guided_velocity(x: Tensor, t: Tensor) -> Tensor:
        v_uncond, v_cond = velocity(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return combine_guidance(v_cond, v_uncond, scale)

    return guided_velocity
