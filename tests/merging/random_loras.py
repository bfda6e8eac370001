"""Random adapters in memory, and what they mean as dense matrices."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import LoraSettings

SIZES = {"block.0.to_q": (12, 10), "block.0.to_k": (9, 14), "block.1.to_q": (12, 10)}
"""(out, in)."""


def lora(
    seed: int,
    *,
    rank: int = 3,
    alpha: float = 3,
    layers: Sequence[str] = tuple(SIZES),
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    zero: bool = False,
    notes: Mapping[str, Any] | None = None,
    source: str = "",
    **settings: Any,
) -> AdapterFiles:
    """Standard normal factors; with `zero`, B is zero as in a fresh adapter."""
    generator = torch.Generator().manual_seed(seed)
    config = LoraSettings(rank, alpha, settings.pop("targets", tuple(layers)), **settings)
    tensors = {}
    for path in layers:
        out_features, in_features = sizes[path]
        r = config.rank_of(path)
        tensors[f"{path}.lora_A.weight"] = torch.randn(r, in_features, generator=generator)
        B = torch.randn(out_features, r, generator=generator)
        tensors[f"{path}.lora_B.weight"] = 0 * B if zero else B
    return of(config, tensors, notes, source or f"runs/lora-{seed}")


def of(
    config: LoraSettings,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any] | None = None,
    source: str = "runs/lora",
) -> AdapterFiles:
    content = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    digest = hashlib.sha256(content).hexdigest()
    return AdapterFiles(Path(source), "peft", config, tensors, notes or {}, digest)


def dense(config: LoraSettings, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s B A of every layer, in float64."""
    paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    return {
        path: config.scaling_of(path)
        * tensors[f"{path}.lora_B.weight"].double()
        @ tensors[f"{path}.lora_A.weight"].double()
        for path in paths
    }


def intended(adapters: Sequence[AdapterFiles], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i w_i s_i B_i A_i of every layer, in float64."""
    merged: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, delta in dense(adapter.config, adapter.tensors).items():
            merged[path] = merged.get(path, torch.zeros_like(delta)) + weight * delta
    return merged
