"""Group advantages: Equation (7)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowopd.algorithms.shapes import check_samples

EPS = 1e-4
Spread = Literal["global", "group"]


class Advantages(NamedTuple):
    """`values` [B], 0 where there is no signal; `used` [B] says where there is one."""

    values: Tensor
    used: Tensor
    zero_spread: float
    """The share of groups whose rewards are all the same, and which teach nothing."""


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    *,
    spread: Spread = "global",
    clip: float = 5.0,
    pools: Tensor | None = None,
) -> Advantages:
    """Equation (7) for rewards [B] (NaN: missing) in groups [B] of one prompt each.

    `spread: global` divides by one deviation for all samples of a pool (a task: rewards of
    different tasks have different scales); without `pools` the whole batch is one.
    """
    batch = len(rewards)
    pools = torch.zeros_like(groups) if pools is None else pools
    check_samples(batch, rewards=rewards, groups=groups, pools=pools)
    rewards = rewards.to(torch.float64)
    present = ~rewards.isnan()
    _, index = torch.unique(groups, return_inverse=True)
    mean = _mean_by(rewards, index, present)
    centred = torch.where(present, rewards - mean[index], 0.0)
    varied = _spread_by(rewards, index, present)
    deviation = (
        _deviation_by(centred, index, present)[index]
        if spread == "group"
        else _global_deviation(rewards, pools, present)
    )
    used = present & varied[index]
    values = torch.where(used, centred / (deviation + EPS), 0.0).clamp(-clip, clip)
    share = 1.0 - float(varied.double().mean())
    return Advantages(values.float(), used, share)


def _mean_by(values: Tensor, index: Tensor, present: Tensor) -> Tensor:
    count = torch.zeros(int(index.max()) + 1, dtype=values.dtype)
    total = count.clone()
    count.index_add_(0, index, present.to(values.dtype))
    total.index_add_(0, index, torch.where(present, values, 0.0))
    return total / count.clamp(min=1)


def _spread_by(rewards: Tensor, index: Tensor, present: Tensor) -> Tensor:
    """Whether the rewards of a group differ at all, compared exactly."""
    groups = int(index.max()) + 1
    highest = torch.full((groups,), -torch.inf, dtype=rewards.dtype)
    lowest = torch.full((groups,), torch.inf, dtype=rewards.dtype)
    highest.scatter_reduce_(0, index[present], rewards[present], "amax")
    lowest.scatter_reduce_(0, index[present], rewards[present], "amin")
    return highest > lowest


def _deviation_by(centred: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _mean_by(centred.square(), index, present).sqrt()


def _global_deviation(rewards: Tensor, pools: Tensor, present: Tensor) -> Tensor:
    """The deviation of all rewards of a pool around the pool's mean, for each sample."""
    _, index = torch.unique(pools, return_inverse=True)
    around = torch.where(present, rewards - _mean_by(rewards, index, present)[index], 0.0)
    return _deviation_by(around, index, present)[index]
