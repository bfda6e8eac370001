"""What cannot be merged, said before anything is computed."""

import math
from collections.abc import Mapping, Sequence

from flowopd.errors import FlowOPDError
from flowopd.merging.config import MergeConfig
from flowopd.merging.methods import matrix_of, paths_of
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX

SUM_TOLERANCE = 1e-6
UNKNOWN = "unnamed"


def check_weights(weights: Sequence[float], adapters: int, config: MergeConfig) -> None:
    """Refuse weights that do not go with that many adapters, or do not sum to 1."""
    if adapters == 0:
        raise FlowOPDError("There is nothing to merge; give one adapter or more.")
    if len(weights) != adapters:
        raise FlowOPDError(
            f"There are {adapters} adapters and {len(weights)} weights; give a weight for each."
        )
    given = ", ".join(f"{weight:g}" for weight in weights)
    if not all(math.isfinite(weight) for weight in weights):
        raise FlowOPDError(f"The weights are {given}; each should be a finite number.")
    if not any(weights):
        raise FlowOPDError(
            "All weights are zero, which leaves nothing; give weights that sum to 1."
        )
    if not config.any_sum and abs(math.fsum(weights) - 1) > SUM_TOLERANCE:
        raise FlowOPDError(
            f"The weights {given} sum to {math.fsum(weights):.6g}, not to 1. Change them, or say "
            "that any sum is meant (any_sum: true, or --any-sum): task arithmetic."
        )


def check_merge(
    adapters: Sequence[AdapterFiles], weights: Sequence[float], config: MergeConfig
) -> None:
    """Refuse adapters and weights that cannot be merged in this way."""
    check_weights(weights, len(adapters), config)
    for adapter in adapters:
        _require_whole(adapter)
    _require_different(adapters)
    _require_one_base(adapters)
    _require_one_shape(adapters)
    if config.method == "factors":
        _require_same_factors(adapters)


def _require_whole(adapter: AdapterFiles) -> None:
    """Both halves of every layer, as matrices that fit each other and the settings."""
    if not adapter.tensors:
        raise FlowOPDError(
            f"The adapter {adapter.source} cannot be merged: its weights file has no tensors. "
            "Use one that was saved whole."
        )
    paths = paths_of(adapter)
    selected = set(adapter.config.select(paths))
    for path in paths:
        missing = [key for key in (path + A_SUFFIX, path + B_SUFFIX) if key not in adapter.tensors]
        if missing:
            raise FlowOPDError(
                f"The adapter {adapter.source} is not whole: {missing[0]} is missing."
            )
        B, A = matrix_of(adapter, path)
        rank = adapter.config.rank_of(path)
        if B.ndim != 2 or A.ndim != 2 or B.shape[1] != rank or A.shape[0] != rank:
            raise FlowOPDError(
                f"The adapter {adapter.source} contradicts its settings: {path} should have rank "
                f"{rank}, and has B {list(B.shape)} and A {list(A.shape)}."
            )
        if path not in selected:
            raise FlowOPDError(
                f"The adapter {adapter.source} contradicts its settings: its target_modules do not "
                f"select {path}, for which it has weights."
            )


def _require_different(adapters: Sequence[AdapterFiles]) -> None:
    first: dict[str, AdapterFiles] = {}
    for adapter in adapters:
        other = first.setdefault(adapter.sha256, adapter)
        if other is not adapter:
            raise FlowOPDError(
                f"The same adapter is given twice: {other.source} and {adapter.source} have the "
                "same weights. Give it once, with the sum of its weights."
            )


def _require_one_base(adapters: Sequence[AdapterFiles]) -> None:
    known = [adapter for adapter in adapters if adapter.notes.get("fingerprint")]
    for adapter in known[1:]:
        if adapter.notes["fingerprint"] != known[0].notes["fingerprint"]:
            raise FlowOPDError(
                f"The adapters are of different bases: {_base(known[0])}, and {_base(adapter)}. "
                "Merge adapters that were trained on one base."
            )


def _base(adapter: AdapterFiles) -> str:
    notes = adapter.notes
    return f"{adapter.source} of {notes.get('base') or UNKNOWN} ({notes['fingerprint']})"


def _require_one_shape(adapters: Sequence[AdapterFiles]) -> None:
    first: dict[str, tuple[AdapterFiles, list[int]]] = {}
    for adapter in adapters:
        for path in paths_of(adapter):
            B, A = matrix_of(adapter, path)
            shape = [B.shape[0], A.shape[1]]
            other, expected = first.setdefault(path, (adapter, shape))
            if shape != expected:
                raise FlowOPDError(
                    f"The layer {path} is {expected} in {other.source} and {shape} in "
                    f"{adapter.source} (out, in). Merge adapters that were trained on one base."
                )


def _require_same_factors(adapters: Sequence[AdapterFiles]) -> None:
    expected = _kinds(adapters[0])
    for adapter in adapters[1:]:
        found = _kinds(adapter)
        for path in expected.keys() | found.keys():
            if expected.get(path) != found.get(path):
                raise FlowOPDError(
                    "The method factors averages A's and B's apart, and needs the same layers, "
                    f"ranks and scalings everywhere: {path} has {expected.get(path, 'no adapter')} "
                    f"in {adapters[0].source} and {found.get(path, 'no adapter')} in "
                    f"{adapter.source}. Use the method svd or exact."
                )


def _kinds(adapter: AdapterFiles) -> Mapping[str, str]:
    settings = adapter.config
    return {
        path: f"rank {settings.rank_of(path)} scaled by {settings.scaling_of(path):g}"
        for path in paths_of(adapter)
    }
