"""The file in which diffusers keeps a LoRA: one safetensors file, settings in its header if at all.

Keys are `transformer.<module path>.lora_A.weight`, or without the prefix when a transformer saved
itself; older files say `.lora.down.weight` and `.lora.up.weight`.
"""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import save_tensors
from flowopd.policy.adapter_keys import require_distinct, unwrapped
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings, module_path, parse_settings

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_PREFIX = "transformer."
ALPHA_SUFFIX = ".alpha"
_USUAL_SUFFIX = {
    ".lora.alpha": ALPHA_SUFFIX,
    ".lora.down.weight": A_SUFFIX,
    ".lora_down.weight": A_SUFFIX,
    ".lora.up.weight": B_SUFFIX,
    ".lora_up.weight": B_SUFFIX,
}


def interpret(
    raw: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path
) -> tuple[LoraSettings, dict[str, Tensor]]:
    """Settings from the header, else from `.alpha` keys, else diffusers' rule: alpha = rank."""
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in raw) else ""
    plain = unwrapped(raw, prefix, file)
    names = {key: _usual_key(name.removeprefix(prefix)) for key, name in plain.items()}
    require_distinct(names, file)
    alphas = {
        name.removesuffix(ALPHA_SUFFIX): _alpha(raw[key], key, file)
        for key, name in names.items()
        if name.endswith(ALPHA_SUFFIX)
    }
    tensors = {name: raw[key] for key, name in names.items() if not name.endswith(ALPHA_SUFFIX)}
    described = _described(metadata, prefix, file)
    if described and alphas:
        raise FlowOPDError(f"{file} gives alpha twice, in its header and in .alpha keys.")
    if described:
        return parse_settings(described, f"{file} ({_METADATA})"), tensors
    return _settings_from_shapes(tensors, alphas, file), tensors


def _usual_key(key: str) -> str:
    for suffix, usual in _USUAL_SUFFIX.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix) + usual
    return key


def _alpha(tensor: Tensor, key: str, file: Path) -> float:
    if tensor.numel() != 1 or not bool(tensor.isfinite().all()):
        raise FlowOPDError(
            f"{file}: {key} is {tensor.flatten()[:4].tolist()} of shape {list(tensor.shape)}; an "
            "alpha is one finite number."
        )
    return float(tensor)


def _described(metadata: Mapping[str, str], prefix: str, file: Path) -> dict[str, Any]:
    try:
        described = json.loads(metadata.get(_METADATA) or "{}")
    except json.JSONDecodeError as error:
        raise FlowOPDError(f"{file}: the header's {_METADATA} is not JSON.") from error
    if not isinstance(described, dict):
        raise FlowOPDError(f"{file}: the header's {_METADATA} should be a JSON object.")
    return {k.removeprefix(prefix): v for k, v in described.items() if k.startswith(prefix)}


def _settings_from_shapes(
    tensors: Mapping[str, Tensor], alphas: Mapping[str, float], file: Path
) -> LoraSettings:
    ranks = {
        module_path(key): tensor.shape[0]
        for key, tensor in tensors.items()
        if key.endswith(A_SUFFIX) and tensor.ndim == 2
    }
    strangers = [path for path in alphas if path not in ranks]
    if not ranks or strangers:
        found = ", ".join(strangers[:4] or list(tensors)[:4]) or "nothing"
        raise FlowOPDError(
            f"{file} holds no adapter in diffusers' format: found {found}, where keys should look "
            f"like {_PREFIX}<module>{A_SUFFIX}."
        )
    usual = collections.Counter(ranks.values()).most_common(1)[0][0]
    return LoraSettings(
        rank=usual,
        alpha=usual,
        targets=tuple(ranks),
        rank_pattern={path: rank for path, rank in ranks.items() if rank != usual},
        alpha_pattern={
            path: alphas.get(path, rank)
            for path, rank in ranks.items()
            if alphas.get(path, rank) != usual
        },
    )


def write_diffusers(
    file: Path, config: LoraSettings, tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """diffusers' file with the scaling folded into B, and alpha = rank in the header.

    Readers differ in where they look for alpha, and many look nowhere and take alpha = rank. So
    written, all of them compute the same.
    """
    folded = {
        f"{prefix}.{key}": tensor * config.scaling_of(module_path(key))
        if key.endswith(B_SUFFIX)
        else tensor
        for key, tensor in tensors.items()
    }
    paths = [module_path(key) for key in tensors if key.endswith(A_SUFFIX)]
    pattern = {path: config.rank_of(path) for path in paths if config.rank_of(path) != config.rank}
    plain = LoraSettings(
        config.rank, config.rank, tuple(paths), rank_pattern=pattern, alpha_pattern=pattern
    )
    header = {f"{prefix}.{key}": value for key, value in plain.to_config().items()}
    metadata = {"format": "pt", _METADATA: json.dumps(header, sort_keys=True)}
    save_tensors(folded, file, metadata=metadata)
