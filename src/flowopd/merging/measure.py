"""How far a merged adapter is from the sum that was meant, computed from what will be written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.merging.low_rank import LowRank, total
from flowopd.merging.methods import Layer
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings

CANCELLED = 1e-7
"""A sum this much smaller than its terms is what rounding leaves of a zero."""


@dataclass(frozen=True)
class MergeErrors:
    """|merged - intended| / |intended|, Frobenius; infinite where nothing was intended."""

    layers: Mapping[str, float]
    total: float


@dataclass(frozen=True)
class _Norms:
    error: float
    intended: float
    terms: float


def measure(
    layers: Mapping[str, Layer], tensors: Mapping[str, Tensor], settings: LoraSettings
) -> MergeErrors:
    """The errors of an adapter of these tensors and settings."""
    norms = {path: _norms(layer, tensors, settings) for path, layer in layers.items()}
    whole = _Norms(
        error=math.hypot(*(norm.error for norm in norms.values())),
        intended=math.hypot(*(norm.intended for norm in norms.values())),
        terms=math.hypot(*(norm.terms for norm in norms.values())),
    )
    return MergeErrors({path: _relative(norm) for path, norm in norms.items()}, _relative(whole))


def _norms(layer: Layer, tensors: Mapping[str, Tensor], settings: LoraSettings) -> _Norms:
    B, A = tensors[layer.path + B_SUFFIX], tensors[layer.path + A_SUFFIX]
    written = LowRank(B, A).to(torch.float64).scaled(settings.scaling_of(layer.path))
    intended = layer.intended()
    return _Norms(
        error=total([written, intended.scaled(-1.0)]).norm(),
        intended=intended.norm(),
        terms=math.hypot(*(term.weighted().norm() for term in layer.terms)),
    )


def _relative(norms: _Norms) -> float:
    rounding = CANCELLED * norms.terms
    if norms.intended > rounding:
        return norms.error / norms.intended
    return 0.0 if norms.error <= 10 * rounding else math.inf
