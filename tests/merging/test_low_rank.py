"""Products of thin matrices, against the dense matrices that they stand for."""

import math

import pytest
import torch

from flowopd.merging.low_rank import LowRank, best_of_rank, best_of_rank_dense, total


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_matrix(rank: int, seed: int = 0) -> LowRank:
    return LowRank(normal(9, rank, seed=seed), normal(rank, 7, seed=seed + 100))


@pytest.mark.parametrize("rank", [1, 4, 7, 12])
def test_norm_is_that_of_the_product(rank: int) -> None:
    matrix = random_matrix(rank)
    assert matrix.norm() == pytest.approx(float(matrix.product().norm()), rel=1e-12)


def test_norm_sees_a_small_difference_of_large_matrices() -> None:
    matrix, small = random_matrix(3), random_matrix(2, seed=5).scaled(1e-9)
    difference = total([matrix, small, matrix.scaled(-1)])
    assert difference.norm() == pytest.approx(small.norm(), rel=1e-5)


@pytest.mark.parametrize("rank", [2, 6, 15])
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_no_matrix_of_that_rank_is_nearer(rank: int, keep: int) -> None:
    """The singular values that are left out are the error (Eckart, Young)."""
    matrix = random_matrix(rank)
    values = torch.linalg.svdvals(matrix.product())
    assert best_of_rank(matrix, keep).rank == min(keep, rank)
    for found in (best_of_rank(matrix, keep), best_of_rank_dense(matrix.product(), keep)):
        error = float((found.product() - matrix.product()).norm())
        assert error == pytest.approx(float(values[keep:].norm()), rel=1e-9, abs=1e-12)


def test_the_singular_values_are_shared_evenly() -> None:
    matrix = random_matrix(4)
    found = best_of_rank(matrix, 3)
    values = torch.linalg.svdvals(matrix.product())[:3]
    for gram in (found.B.T @ found.B, found.A @ found.A.T):
        torch.testing.assert_close(gram, torch.diag(values))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_direction_that_carries_nothing_is_as_in_a_fresh_adapter(scale: float) -> None:
    """Twice the same factors: half of the rank is idle. Times zero: all of it is."""
    once = random_matrix(2).scaled(scale)
    found = best_of_rank(total([once, once]), 4)
    torch.testing.assert_close(found.product(), 2 * once.product())
    idle = slice(0 if scale == 0 else 2, 4)
    assert torch.equal(found.B[:, idle], torch.zeros_like(found.B[:, idle]))
    lengths = found.A[idle].norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1 / math.sqrt(3)))
