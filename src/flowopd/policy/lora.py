"""What a LoRA configuration means for a model: which layers, at what rank, scaled by how much.

A layer `W` with a LoRA is `W + scaling · B A`. Keys are `<module path>.lora_A.weight` (A, [r, in])
and `<module path>.lora_B.weight` (B, [out, r]) everywhere in this package, whatever the file says.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from flowopd.errors import FlowOPDError

A_SUFFIX = ".lora_A.weight"
B_SUFFIX = ".lora_B.weight"
ALL_LINEAR = "all-linear"
DEFAULT_RANK = DEFAULT_ALPHA = 8
"""PEFT's, in all of its versions."""

# Fields of PEFT's configuration that are read here, and those that do not alter what the adapter
# computes. Any other field that is set is a variant of LoRA that a shared frozen base cannot carry.
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
}
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
}
# PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, … subtract their start from the base weights.
_INITS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraSettings:
    """The part of PEFT's `LoraConfig` that decides what an adapter computes."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | str
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] | str | None = None

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def alpha_of(self, path: str) -> float:
        return _by_pattern(self.alpha_pattern, path, self.alpha)

    def scaling_of(self, path: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def select(self, layers: Iterable[str]) -> list[str]:
        """Those of `layers` that PEFT would give this adapter to."""
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

        layers = list(layers)
        config = LoraConfig(**self.to_config())
        if self.targets == ALL_LINEAR:
            config.target_modules = set(layers)
        return [path for path in layers if check_target_module_exists(config, path)]

    def to_config(self) -> dict[str, Any]:
        """The fields of `adapter_config.json`."""
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": _whole(self.alpha),
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": self.use_rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": {key: _whole(alpha) for key, alpha in self.alpha_pattern.items()},
            "target_modules": _listed(self.targets),
        }
        optional = {
            "exclude_modules": _listed(self.exclude),
            "layers_to_transform": _listed(self.layers_to_transform),
            "layers_pattern": _listed(self.layers_pattern),
        }
        return config | {key: value for key, value in optional.items() if value is not None}


def parse_settings(config: Mapping[str, Any], where: str) -> LoraSettings:
    """PEFT's configuration, or an error that names the field that cannot be honoured."""
    _refuse_variants(config, where)
    rank, alpha = config.get("r", DEFAULT_RANK), config.get("lora_alpha", DEFAULT_ALPHA)
    targets = config.get("target_modules")
    if not _is_number(rank) or rank != int(rank) or rank < 1:
        raise FlowOPDError(f"{where}: r is {rank!r}; it must be a whole number of at least 1.")
    if not _is_number(alpha):
        raise FlowOPDError(f"{where}: lora_alpha is {alpha!r}; it must be a number.")
    if not targets or not isinstance(targets, str | Sequence):
        raise FlowOPDError(f"{where}: target_modules is {targets!r}; it must name modules.")
    layers = config.get("layers_to_transform")
    settings = LoraSettings(
        rank=int(rank),
        alpha=float(alpha),
        targets=_frozen(targets),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern=_pattern(config, "rank_pattern", where),
        alpha_pattern=_pattern(config, "alpha_pattern", where),
        exclude=_frozen(config.get("exclude_modules") or None),
        layers_to_transform=(layers,) if isinstance(layers, int) else _frozen(layers),
        layers_pattern=_frozen(config.get("layers_pattern") or None),
    )
    try:
        settings.select(["any.module"])
        settings.scaling_of("any.module")
    except (re.error, ValueError, TypeError) as error:
        raise FlowOPDError(f"{where} is not a configuration that PEFT accepts: {error}") from error
    return settings


def module_path(key: str) -> str:
    """The module that a key belongs to; the key itself if it is no LoRA key."""
    return key.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX)


def _refuse_variants(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise FlowOPDError(f"{where}: peft_type is {kind!r}; only LORA adapters can be used.")
    refused = [key for key in config if key not in _READ | _NEUTRAL and config[key]]
    if (config.get("bias") or "none") != "none":
        refused.append("bias")
    if config.get("init_lora_weights") not in _INITS_THAT_KEEP_THE_BASE:
        refused.append("init_lora_weights")
    if refused:
        found = ", ".join(f"{key}={config[key]!r}" for key in refused)
        raise FlowOPDError(
            f"{where}: {found} cannot be honoured: all adapters share one unchanged base, and what "
            "is not known here may compute something else. Plain LoRA is supported, with "
            "rank_pattern, alpha_pattern and use_rslora."
        )


def _pattern(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, Mapping) or not all(map(_is_number, pattern.values())):
        raise FlowOPDError(f"{where}: {name} is {pattern!r}; it must map module names to numbers.")
    return dict(pattern)


def _by_pattern(pattern: Mapping[str, float], path: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the path, from a dot on."""
    for expression, value in pattern.items():
        if re.match(rf"(.*\.)?({expression})$", path):
            return value
    return default


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _frozen(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else tuple(value)


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else list(value)
