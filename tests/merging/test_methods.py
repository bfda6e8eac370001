"""What each method computes, against dense matrices and hand-computed values."""

import math

import pytest
import torch
from random_loras import SIZES, dense, intended, lora, of
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.merging import MergeConfig, Merged, merge
from flowopd.merging.methods import trim
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import LoraSettings

QUERY = "block.0.to_q"
DIFFERENT = (
    lora(1, rank=2, alpha=5),
    lora(2, rank=4, alpha=4, use_rslora=True),
    lora(3, layers=[QUERY], rank=3, alpha=1, rank_pattern={"to_q": 5}, alpha_pattern={"to_q": 2}),
)
WEIGHTS = (0.5, 0.3, 0.2)


def merged_matrices(merged: Merged) -> dict[str, Tensor]:
    return dense(merged.config, merged.tensors)


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative, over all layers."""
    assert found.keys() == wanted.keys()
    error = math.hypot(*(float((found[path] - wanted[path]).norm()) for path in wanted))
    return error / math.hypot(*(float(matrix.norm()) for matrix in wanted.values()))


def matrix_lora(values: list[list[float]], **settings: object) -> AdapterFiles:
    """An adapter of one layer whose change is this matrix."""
    delta = torch.tensor(values)
    tensors = {"to_q.lora_A.weight": torch.eye(delta.shape[1]), "to_q.lora_B.weight": delta}
    rank = delta.shape[1]
    return of(LoraSettings(rank, rank, ("to_q",)), tensors, source="runs/matrix")


class TestExact:
    def test_the_sum_of_different_ranks_alphas_and_layers(self) -> None:
        merged = merge(DIFFERENT, WEIGHTS, MergeConfig(method="exact"))
        assert distance(merged_matrices(merged), intended(DIFFERENT, WEIGHTS)) < 1e-6
        assert merged.errors.total < 1e-6
        assert merged.ranks == {QUERY: 2 + 4 + 5, "block.0.to_k": 2 + 4, "block.1.to_q": 2 + 4}
        assert all(merged.config.scaling_of(path) == 1 for path in SIZES)
        assert merged.config.select([*SIZES, "block.2.to_q", "to_q"]) == list(SIZES)

    def test_one_adapter_at_weight_one_is_itself(self) -> None:
        for adapter in DIFFERENT:
            merged = merge([adapter], [1.0], MergeConfig(method="exact"))
            assert merged.config == adapter.config
            assert merged.tensors.keys() == adapter.tensors.keys()
            assert all(torch.equal(merged.tensors[k], t) for k, t in adapter.tensors.items())
            assert merged.errors.total < 1e-12

    def test_negative_weights_and_any_sum(self) -> None:
        weights = (1.0, -0.5, 0.75)
        merged = merge(DIFFERENT, weights, MergeConfig(method="exact", any_sum=True))
        assert distance(merged_matrices(merged), intended(DIFFERENT, weights)) < 1e-6

    def test_an_adapter_of_weight_zero_takes_no_part(self) -> None:
        merged = merge([lora(1), lora(2)], [1.0, 0.0], MergeConfig(method="exact"))
        assert set(merged.ranks.values()) == {3}
        assert [parent["weight"] for parent in merged.parents] == [1.0, 0.0]

    def test_adapters_alike_in_their_targets_keep_them(self) -> None:
        alike = [lora(seed, targets=("to_q", "to_k")) for seed in (1, 2)]
        config = merge(alike, [0.5, 0.5], MergeConfig(method="exact")).config
        assert config == LoraSettings(6, 6.0, ("to_q", "to_k"))


class TestSvd:
    @pytest.mark.parametrize("rank", [1, 3, 6])
    def test_no_adapter_of_that_rank_is_nearer(self, rank: int) -> None:
        merged = merge(DIFFERENT, WEIGHTS, MergeConfig(rank=rank))
        wanted = intended(DIFFERENT, WEIGHTS)
        for path, found in merged_matrices(merged).items():
            values = torch.linalg.svdvals(wanted[path])
            best = float(values[rank:].norm() / values.norm())
            error = float((found - wanted[path]).norm() / wanted[path].norm())
            assert error == pytest.approx(best, rel=1e-4, abs=1e-6)
            assert merged.errors.layers[path] == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert merged.errors.total == pytest.approx(distance(merged_matrices(merged), wanted))

    def test_one_adapter_at_weight_one_is_itself(self) -> None:
        for adapter in DIFFERENT:
            merged = merge([adapter], [1.0], MergeConfig())
            assert distance(merged_matrices(merged), intended([adapter], [1.0])) < 1e-6

    def test_the_rank_is_the_largest_of_the_adapters_unless_given(self) -> None:
        merged = merge(DIFFERENT, WEIGHTS, MergeConfig())
        assert set(merged.ranks.values()) == {5}
        assert merged.options == {"method": "svd", "rank": 5}

    def test_a_rank_that_nothing_can_fill_warns(self) -> None:
        merged = merge(DIFFERENT, WEIGHTS, MergeConfig(rank=64))
        assert merged.ranks[QUERY] == 10  # of 11 columns, the layer's inputs
        assert "rank 64 was asked for, and no layer can have more than 10" in merged.warnings[0]
        assert merged.errors.total < 1e-6


class TestTies:
    def test_by_hand(self) -> None:
        """Half of the entries stay: 4 -3 | 2 6 and -5 1 | 3 -1."""
        first = matrix_lora([[4.0, -3.0, 1.0, 0.1], [0.2, 0.3, 2.0, 6.0]])
        second = matrix_lora([[-5.0, 0.1, 1.0, 0.2], [0.3, 0.0, 3.0, -1.0]])
        config = MergeConfig(method="ties", density=0.5, rank=2)
        merged = merge([first, second], [0.6, 0.4], config)
        # Elected: 0.6·4 - 0.4·5 > 0, so only the first's 4 counts; 2 and 3 agree; 6 outweighs -1.
        expected = [[4.0, -3.0, 1.0, 0.0], [0.0, 0.0, 0.6 * 2 + 0.4 * 3, 6.0]]
        assert_close(merged, expected)

    @pytest.mark.parametrize("weight", [1.0, 2.0, -1.0])
    def test_all_of_one_adapter_is_that_adapter(self, weight: float) -> None:
        config = MergeConfig(method="ties", density=1, any_sum=True)
        merged = merge([DIFFERENT[0]], [weight], config)
        assert distance(merged_matrices(merged), intended([DIFFERENT[0]], [weight])) < 1e-5

    def test_signs_that_cancel_leave_nothing(self) -> None:
        pair = [matrix_lora([[2.0, 1.0]]), matrix_lora([[-2.0, 1.0]])]
        config = MergeConfig(method="ties", density=1.0)
        assert_close(merge(pair, [0.5, 0.5], config), [[0.0, 1.0]])

    def test_density_changes_the_result(self) -> None:
        results = [
            merge(DIFFERENT, WEIGHTS, MergeConfig(method="ties", density=d)).errors.total
            for d in (0.2, 0.5, 1.0)
        ]
        assert len(set(results)) == 3

    @pytest.mark.parametrize(
        ("density", "kept"), [(0.01, [7.0]), (0.4, [-5.0, 7.0]), (1.0, [1, -5, 2, 7, 0.5])]
    )
    def test_trimming_keeps_the_largest(self, density: float, kept: list[float]) -> None:
        trimmed = trim(torch.tensor([[1.0, -5.0, 2.0, 7.0, 0.5]]), density)
        assert trimmed[trimmed != 0].tolist() == kept

    def test_trimming_draws_no_lots_among_equals(self) -> None:
        assert torch.equal(trim(torch.ones(2, 4), 0.5), torch.ones(2, 4))


class TestDare:
    def test_what_is_kept_is_rescaled(self) -> None:
        values = torch.arange(1.0, 401.0).reshape(2, 200)
        config = MergeConfig(method="dare", density=0.25, rank=2)
        found = merged_matrices(merge([matrix_lora(values.tolist())], [1.0], config))["to_q"]
        ratio = found / values
        kept = ratio.abs() > 1e-3
        torch.testing.assert_close(
            ratio[kept], torch.full_like(ratio[kept], 4.0), rtol=1e-4, atol=0
        )
        assert kept.double().mean() == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 400))

    def test_the_seed_decides(self) -> None:
        def run(seed: int, adapters: tuple[AdapterFiles, ...] = DIFFERENT) -> dict[str, Tensor]:
            weights = [WEIGHTS[DIFFERENT.index(adapter)] for adapter in adapters]
            config = MergeConfig(method="dare", density=0.5, rank=8, seed=seed)
            return merged_matrices(merge(adapters, weights, config))

        assert distance(run(0), run(0)) == 0
        assert distance(run(0), run(1)) > 0.1
        assert distance(run(0, DIFFERENT[::-1]), run(0)) < 1e-5

    def test_all_of_the_adapters_is_svd(self) -> None:
        everything = merge(DIFFERENT, WEIGHTS, MergeConfig(method="dare", density=1))
        best = merge(DIFFERENT, WEIGHTS, MergeConfig())
        assert distance(merged_matrices(everything), merged_matrices(best)) < 1e-5


class TestFactors:
    @pytest.mark.parametrize("count", [2, 4])
    def test_it_is_not_the_average_of_the_products(self, count: int) -> None:
        """Of N independent ones the error is sqrt(1 - 1/N) of it: 71% of two, 87% of four."""
        adapters = [
            lora(seed, layers=["wide"], sizes={"wide": (400, 300)}, rank=8) for seed in range(count)
        ]
        merged = merge(adapters, [1 / count] * count, MergeConfig(method="factors"))
        assert merged.errors.total == pytest.approx(math.sqrt(1 - 1 / count), abs=0.02)
        assert "not the average of the products" in merged.warnings[0]
        assert f"{merged.errors.total:.1%}" in merged.warnings[0]

    def test_the_factors_are_averaged(self) -> None:
        adapters = [lora(seed, alpha=6) for seed in (1, 2)]
        merged = merge(adapters, [0.25, 0.75], MergeConfig(method="factors"))
        assert merged.config == adapters[0].config
        first, second = (adapter.tensors for adapter in adapters)
        for key, tensor in merged.tensors.items():
            torch.testing.assert_close(tensor, 0.25 * first[key] + 0.75 * second[key])

    def test_one_adapter_at_weight_one_is_itself(self) -> None:
        merged = merge([lora(1)], [1.0], MergeConfig(method="factors"))
        assert all(torch.equal(merged.tensors[k], t) for k, t in lora(1).tensors.items())

    @pytest.mark.parametrize(
        ("other", "difference"),
        [
            (lora(2, rank=4), "rank 3 scaled by 1 in .* and rank 4 scaled by 0.75"),
            (lora(2, alpha=6), "rank 3 scaled by 1 in .* and rank 3 scaled by 2"),
            (lora(2, layers=[QUERY]), "rank 3 scaled by 1 in .* and no adapter"),
        ],
    )
    def test_what_differs_is_refused(self, other: AdapterFiles, difference: str) -> None:
        with pytest.raises(FlowOPDError, match=difference):
            merge([lora(1), other], [0.5, 0.5], MergeConfig(method="factors"))


@pytest.mark.parametrize("method", ["exact", "svd", "ties", "dare", "factors"])
class TestNothing:
    """Fresh adapters, whose B is zero."""

    def test_merges_into_nothing(self, method: str) -> None:
        pair = [lora(1, zero=True), lora(2, zero=True)]
        merged = merge(pair, [0.5, 0.5], MergeConfig(method=method))
        assert all(bool(tensor.isfinite().all()) for tensor in merged.tensors.values())
        assert all(bool((matrix == 0).all()) for matrix in merged_matrices(merged).values())
        assert merged.errors.total == 0
        assert all(bool(t.any()) for k, t in merged.tensors.items() if k.endswith("A.weight"))

    def test_adds_nothing(self, method: str) -> None:
        pair = [lora(1), lora(2, zero=True)]
        config = MergeConfig(
            method=method, **({"density": 1} if method in ("ties", "dare") else {})
        )
        merged = merge(pair, [0.5, 0.5], config)
        assert all(bool(tensor.isfinite().all()) for tensor in merged.tensors.values())
        if method in ("exact", "svd", "dare"):
            assert merged.errors.total < 1e-5


def test_adapters_that_cancel_leave_nothing_and_no_error() -> None:
    one = lora(1)
    opposite = {key: -t if "lora_B" in key else t for key, t in one.tensors.items()}
    pair = [one, of(one.config, opposite)]
    merged = merge(pair, [0.5, 0.5], MergeConfig(method="exact"))
    assert merged.errors.total == 0
    dropped = merge(pair, [0.5, 0.5], MergeConfig(method="dare"))
    assert dropped.errors.total == math.inf
    assert dropped.record()["error"] is None


def assert_close(merged: Merged, expected: list[list[float]]) -> None:
    found = merged_matrices(merged)["to_q"]
    torch.testing.assert_close(found.float(), torch.tensor(expected), rtol=1e-5, atol=1e-5)
