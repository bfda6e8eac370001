"""Every merge that is refused, and the sentence that says why."""

import math
from typing import Any

import pytest
import torch
from random_loras import lora, of

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.merging import MergeConfig, check_merge, merge
from flowopd.policy.adapter_files import AdapterFiles

ONE, TWO = lora(1), lora(2)
QUERY = "block.0.to_q"


def changed(**tensors: torch.Tensor | None) -> AdapterFiles:
    """The first adapter with other factors of one layer; None takes a factor away."""
    found = dict(ONE.tensors)
    for half, tensor in tensors.items():
        key = f"{QUERY}.lora_{half}.weight"
        if tensor is None:
            del found[key]
        else:
            found[key] = tensor
    return of(ONE.config, found, source="runs/changed")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0], "2 adapters and 1 weights; give a weight for each"),
        ([0.5, 0.3, 0.2], "2 adapters and 3 weights"),
        ([math.nan, 1.0], "weights are nan, 1; each should be a finite number"),
        ([math.inf, 1.0], "weights are inf, 1; each"),
        ([0.0, 0.0], "All weights are zero"),
        ([0.5, 0.6], r"0.5, 0.6 sum to 1.1, not to 1. .*any_sum"),
        ([0.5, 0.499], "sum to 0.999, not to 1"),
    ],
)
def test_weights(weights: list[float], sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        merge([ONE, TWO], weights, MergeConfig())


def test_any_sum_allows_any_sum_and_nothing_else() -> None:
    config = MergeConfig(any_sum=True)
    check_merge([ONE, TWO], [1.0, 1.0], config)
    for weights in ([0.0, 0.0], [math.nan, 1.0], [1.0]):
        with pytest.raises(FlowOPDError):
            check_merge([ONE, TWO], weights, config)


@pytest.mark.parametrize(
    ("adapters", "sentence"),
    [
        ([], "nothing to merge; give one adapter"),
        (
            [ONE, lora(1, source="runs/copy")],
            "given twice: runs/lora-1 and runs/copy have the same weights",
        ),
        (
            [
                lora(1, notes={"fingerprint": "f00d", "base": "world"}),
                TWO,
                lora(3, notes={"fingerprint": "beef"}),
            ],
            r"different bases: runs/lora-1 of world \(f00d\), and runs/lora-3 of unnamed \(beef\)",
        ),
        (
            [lora(1, layers=[QUERY]), lora(2, layers=[QUERY], sizes={QUERY: (12, 16)})],
            rf"{QUERY} is \[12, 10\] in runs/lora-1 and \[12, 16\] in runs/lora-2",
        ),
        ([changed(B=None), TWO], rf"runs/changed is not whole: {QUERY}.lora_B.weight is missing"),
        ([changed(A=None), TWO], rf"runs/changed is not whole: {QUERY}.lora_A.weight is missing"),
        (
            [changed(A=torch.ones(2, 10)), TWO],
            rf"{QUERY} should have rank 3, and has B \[12, 3\] and A \[2, 10\]",
        ),
        ([changed(B=torch.ones(12, 3, 1, 1)), TWO], "should have rank 3"),
        ([lora(1, targets=("to_k",)), TWO], f"target_modules do not select {QUERY}"),
    ],
)
def test_adapters(adapters: list[AdapterFiles], sentence: str) -> None:
    weights = [1 / len(adapters)] * len(adapters) if adapters else []
    with pytest.raises(FlowOPDError, match=sentence):
        merge(adapters, weights, MergeConfig())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 0}, "'rank' is 0; it should be greater than or equal to 1"),
        ({"method": "exact", "rank": 4}, "'rank' is 4; it goes with svd and ties and dare"),
        ({"method": "factors", "rank": 4}, "and the method is factors: leave it out"),
        ({"density": 0.5}, "'density' is 0.5; it goes with ties and dare, and the method is svd"),
        ({"method": "dare", "density": 0}, "'density' is 0; it should be greater than 0"),
        ({"method": "ties", "density": 1.5}, "'density' is 1.5; it should be less than or equal"),
        ({"method": "ties", "seed": 1}, "'seed' is 1; it goes with dare, and the method is ties"),
        ({"method": "average"}, "'method' is 'average'; it should be 'exact', 'svd'"),
        ({"any_sum": "perhaps"}, "'any_sum' is 'perhaps'"),
    ],
)
def test_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        build(MergeConfig, options)


@pytest.mark.parametrize("method", ["exact", "svd", "ties", "dare", "factors"])
def test_what_a_configuration_says_can_be_read_back(method: str) -> None:
    config = build(MergeConfig, {"method": method})
    assert build(MergeConfig, config.model_dump()) == config
    assert config.density == (0.5 if method in ("ties", "dare") else None)


def test_an_adapter_without_tensors_is_refused() -> None:
    empty = of(ONE.config, {}, source="runs/empty")
    sentence = "runs/empty cannot be merged: its weights file has no tensors"
    for method in ("exact", "svd", "factors"):
        with pytest.raises(FlowOPDError, match=sentence):
            merge([empty], [1.0], build(MergeConfig, {"method": method}))
    with pytest.raises(FlowOPDError, match=sentence):
        merge([ONE, empty], [0.5, 0.5], MergeConfig())
