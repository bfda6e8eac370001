"""Products of two thin matrices, handled without ever writing the product out.

Shapes: B is [out,r] and A is [r,in], as in a LoRA; their product is [out,in].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FRESH_NORM = 3**-0.5
"""The length of a row of A in an adapter that has not been trained: uniform in ±1/sqrt(in)."""


class LowRank(NamedTuple):
    """The matrix B A."""

    B: Tensor
    A: Tensor

    @property
    def rank(self) -> int:
        """The number of columns of B, whether or not they are independent."""
        return self.A.shape[0]

    def product(self) -> Tensor:
        return self.B @ self.A

    def scaled(self, factor: float) -> "LowRank":
        return LowRank(self.B * factor, self.A)

    def to(self, dtype: torch.dtype) -> "LowRank":
        return LowRank(self.B.to(dtype), self.A.to(dtype))

    def norm(self) -> float:
        """|B A| (Frobenius) = |R_B R_A^T|, where B = Q_B R_B and A^T = Q_A R_A."""
        _, R_B = torch.linalg.qr(self.B, mode="r")
        _, R_A = torch.linalg.qr(self.A.T, mode="r")
        return float(torch.linalg.matrix_norm(R_B @ R_A.T))


def total(terms: Sequence[LowRank]) -> LowRank:
    """The sum of the products, as one product: B's side by side, A's one below the other."""
    return LowRank(
        torch.cat([term.B for term in terms], dim=1), torch.cat([term.A for term in terms], dim=0)
    )


def best_of_rank(matrix: LowRank, rank: int) -> LowRank:
    """The nearest matrix of that rank (Eckart-Young), by the SVD of the small core R_B R_A^T."""
    Q_B, R_B = torch.linalg.qr(matrix.B)
    Q_A, R_A = torch.linalg.qr(matrix.A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return _balanced(Q_B @ U[:, :rank], S[:rank], Vh[:rank] @ Q_A.T)


def best_of_rank_dense(matrix: Tensor, rank: int) -> LowRank:
    """The same of a matrix that is not known as a product."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return _balanced(U[:, :rank], S[:rank], Vh[:rank])


def _balanced(U: Tensor, S: Tensor, Vh: Tensor) -> LowRank:
    """B = U sqrt(S) and A = sqrt(S) V^T.

    A direction that carries nothing becomes what it is in a fresh adapter, where B is zero and A
    is not: with both at zero it could never be trained.
    """
    carries = torch.finfo(S.dtype).eps * max(len(U), Vh.shape[1]) * S[0] < S
    roots = torch.where(carries, S.sqrt(), 0.0)
    return LowRank(U * roots, torch.where(carries, roots, FRESH_NORM)[:, None] * Vh)
