"""Merging adapters: from what was read to what can be written."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopd.files import write_atomic
from flowopd.merging.checks import check_merge
from flowopd.merging.config import MergeConfig
from flowopd.merging.low_rank import LowRank
from flowopd.merging.measure import MergeErrors, measure
from flowopd.merging.methods import METHODS, layers_of, matrix_of, paths_of
from flowopd.merging.record import (
    base_of,
    lora_prefix,
    parents,
    parents_warnings,
    shared_settings,
)
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.adapter_saving import write_adapter
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings

RECORD = "merge.json"
ROLE = "merged"


@dataclass(frozen=True)
class Merged:
    """An adapter made of others, and how far it is from their weighted sum."""

    config: LoraSettings
    tensors: Mapping[str, Tensor]
    errors: MergeErrors
    options: Mapping[str, Any]
    """The method and what it read."""
    parents: Sequence[Mapping[str, Any]]
    """Name, weight and SHA-256 of each."""
    notes: Mapping[str, Any]
    """For `flowopd.json`."""
    warnings: Sequence[str]
    lora_prefix: str | None
    """diffusers' prefix, if a parent was written for diffusers."""

    @property
    def ranks(self) -> dict[str, int]:
        """By layer."""
        return {path: self.config.rank_of(path) for path in self.errors.layers}

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def record(self) -> dict[str, Any]:
        """What `merge.json` holds. An error that is infinite is null there."""
        return {
            **self.options,
            "parents": list(self.parents),
            "error": _finite(self.errors.total),
            "parameters": self.parameters,
            "warnings": list(self.warnings),
            "layers": {
                path: {"rank": rank, "error": _finite(self.errors.layers[path])}
                for path, rank in self.ranks.items()
            },
        }

    def save(self, folder: Path, record: Path | None = None) -> None:
        """The adapter's folder, and its record: in the folder, or where `record` says."""
        write_adapter(folder, self.config, self.tensors, self.notes, lora_prefix=self.lora_prefix)
        text = json.dumps(self.record(), indent=2, allow_nan=False) + "\n"
        write_atomic(folder / RECORD if record is None else record, text)


@torch.no_grad()
def merge(
    adapters: Sequence[AdapterFiles], weights: Sequence[float], config: MergeConfig
) -> Merged:
    """sum_i w_i s_i B_i A_i, in the way that `config` says. Adapters of weight 0 take no part."""
    check_merge(adapters, weights, config)
    used = [place for place, weight in enumerate(weights) if weight != 0]
    sources, shares = [adapters[place] for place in used], [weights[place] for place in used]
    layers = layers_of(sources, shares)
    rank = config.rank or max(max(_ranks(source).values()) for source in sources)
    as_it_is = config.method == "exact" and len(sources) == 1
    if as_it_is:
        matrices = {path: matrix_of(sources[0], path).scaled(shares[0]) for path in layers}
    else:
        combine = METHODS[config.method]
        matrices = {path: combine(layer, config, rank) for path, layer in layers.items()}
    keeps_settings = as_it_is or config.method == "factors"
    settings = sources[0].config if keeps_settings else _settings(sources, matrices)
    tensors = _tensors(matrices)
    errors = measure(layers, tensors, settings)
    origin = parents(adapters, weights)
    options = config.options()
    if "rank" in options:
        options["rank"] = max(matrix.rank for matrix in matrices.values())
    how = {**options, "error": _finite(errors.total), "parents": origin}
    return Merged(
        config=settings,
        tensors=tensors,
        errors=errors,
        options=options,
        parents=origin,
        notes={"role": ROLE, **base_of(sources), **shared_settings(sources), "merge": how},
        warnings=[*_warnings(config, errors, options), *parents_warnings(sources)],
        lora_prefix=lora_prefix(sources),
    )


def _ranks(adapter: AdapterFiles) -> dict[str, int]:
    return {path: adapter.config.rank_of(path) for path in paths_of(adapter)}


def _settings(sources: Sequence[AdapterFiles], matrices: Mapping[str, LowRank]) -> LoraSettings:
    """Alpha equal to the rank everywhere, since scalings are folded into B.

    Layers are selected as the sources do if they all do it alike, and else by their paths.
    """
    ranks = {path: matrix.rank for path, matrix in matrices.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{path}": rank for path, rank in ranks.items() if rank != usual}
    settings = replace(
        sources[0].config,
        rank=usual,
        alpha=float(usual),
        use_rslora=False,
        rank_pattern=pattern,
        alpha_pattern={path: float(rank) for path, rank in pattern.items()},
    )
    if len({_selection(source) for source in sources}) == 1:
        return settings
    return replace(
        settings, targets=tuple(ranks), exclude=None, layers_to_transform=None, layers_pattern=None
    )


def _selection(source: AdapterFiles) -> tuple[Any, ...]:
    settings = source.config
    targets = settings.targets if isinstance(settings.targets, str) else frozenset(settings.targets)
    rest = (settings.exclude, settings.layers_to_transform, settings.layers_pattern)
    return (targets, frozenset(paths_of(source)), *rest)


def _tensors(matrices: Mapping[str, LowRank]) -> dict[str, Tensor]:
    tensors = {}
    for path, matrix in matrices.items():
        tensors[path + A_SUFFIX] = matrix.A.float().contiguous()
        tensors[path + B_SUFFIX] = matrix.B.float().contiguous()
    return tensors


def _warnings(config: MergeConfig, errors: MergeErrors, options: Mapping[str, Any]) -> list[str]:
    if config.method == "factors":
        return [
            "factors averages the A's and the B's apart, which is not the average of the products "
            f"B A: the result is off by {errors.total:.1%} of it. The method is there to reproduce "
            "published runs; svd and exact merge what the adapters do."
        ]
    if config.rank is not None and options.get("rank", config.rank) < config.rank:
        return [
            f"rank {config.rank} was asked for, and no layer can have more than "
            f"{options['rank']}; that is the rank of the result."
        ]
    return []


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None
