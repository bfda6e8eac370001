"""The methods: what one layer's LoRAs become.

Shapes: N adapters that have the layer, [out,in] its weight.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.merging.config import DENSITY, MergeConfig
from flowopd.merging.low_rank import LowRank, best_of_rank, best_of_rank_dense, total
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, module_path


@dataclass(frozen=True)
class Term:
    """One adapter's w s B A in one layer, in float64."""

    adapter: str
    """The adapter's SHA-256."""
    weight: float
    scaling: float
    matrix: LowRank

    def weighted(self) -> LowRank:
        return self.matrix.scaled(self.weight * self.scaling)

    def delta(self) -> Tensor:
        """s B A, dense and in float32."""
        return self.matrix.scaled(self.scaling).product().float()


@dataclass(frozen=True)
class Layer:
    """A layer, and the adapters that have it."""

    path: str
    terms: Sequence[Term]
    weight: float
    """The sum of |w| over all adapters, those without this layer too."""

    def intended(self) -> LowRank:
        """sum_i w_i s_i B_i A_i."""
        return total([term.weighted() for term in self.terms])


def layers_of(adapters: Sequence[AdapterFiles], weights: Sequence[float]) -> dict[str, Layer]:
    """The layers of all adapters, by path, in the order in which they appear."""
    terms: dict[str, list[Term]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path in paths_of(adapter):
            scaling = adapter.config.scaling_of(path)
            matrix = matrix_of(adapter, path).to(torch.float64)
            term = Term(adapter.sha256, weight, scaling, matrix)
            terms.setdefault(path, []).append(term)
    size = sum(abs(weight) for weight in weights)
    return {path: Layer(path, found, size) for path, found in terms.items()}


def paths_of(adapter: AdapterFiles) -> list[str]:
    """The layers that the adapter changes."""
    return list(dict.fromkeys(module_path(key) for key in adapter.tensors))


def matrix_of(adapter: AdapterFiles, path: str) -> LowRank:
    return LowRank(adapter.tensors[path + B_SUFFIX], adapter.tensors[path + A_SUFFIX])


def exact(layer: Layer, config: MergeConfig, rank: int) -> LowRank:
    """The sum itself, of rank sum_i r_i."""
    return layer.intended()


def svd(layer: Layer, config: MergeConfig, rank: int) -> LowRank:
    """The nearest matrix of that rank to the sum."""
    return best_of_rank(layer.intended(), rank)


def ties(layer: Layer, config: MergeConfig, rank: int) -> LowRank:
    """TIES: trim each adapter's change, elect a sign for each entry, average those that agree.

    The average is sum w x / sum |w| over the adapters that agree, times the sum of |w| over all of
    them, so that adapters that are all the same give themselves.
    """
    trimmed = torch.stack([trim(term.delta(), _density(config)) for term in layer.terms])
    weights = torch.tensor([term.weight for term in layer.terms]).reshape(-1, 1, 1)
    weighted = weights * trimmed
    elected = weighted.sum(0).sign()
    agrees = (weighted.sign() == elected) & (elected != 0)
    share = (weights.abs() * agrees).sum(0)
    mean = torch.where(share > 0, (weighted * agrees).sum(0) / share, 0.0)
    return best_of_rank_dense(layer.weight * mean, rank)


def dare(layer: Layer, config: MergeConfig, rank: int) -> LowRank:
    """DARE: drop entries of each adapter's change at random, and rescale those that are kept.

    What is dropped depends on the seed, the layer and the adapter, and not on the others' order.
    """
    density = _density(config)
    merged = torch.zeros_like(layer.terms[0].delta())
    for term in layer.terms:
        delta = term.delta()
        drawn = torch.rand(delta.shape, generator=_generator(config.seed, layer.path, term.adapter))
        merged += term.weight * delta * (drawn < density) / density
    return best_of_rank_dense(merged, rank)


def factors(layer: Layer, config: MergeConfig, rank: int) -> LowRank:
    """The average of the B's times the average of the A's, which is not the average of B A."""
    return LowRank(
        sum((term.weight * term.matrix.B for term in layer.terms), torch.zeros(())),
        sum((term.weight * term.matrix.A for term in layer.terms), torch.zeros(())),
    )


METHODS: Mapping[str, Callable[[Layer, MergeConfig, int], LowRank]] = {
    "exact": exact,
    "svd": svd,
    "ties": ties,
    "dare": dare,
    "factors": factors,
}


def trim(delta: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, that share of them (more if magnitudes are equal)."""
    keep = max(1, round(density * delta.numel()))
    magnitude = delta.abs()
    smallest = magnitude.flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(magnitude >= smallest, delta, 0.0)


def _density(config: MergeConfig) -> float:
    return DENSITY if config.density is None else config.density


def _generator(seed: int, path: str, adapter: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {path} {adapter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
