"""Muon in float32 for stacks of equal matrices: momentum, orthogonalised by Newton-Schulz.

`torch.optim.Muon` orthogonalises in bfloat16, one matrix at a time; on a processor without
bfloat16 units that takes longer than the forward and backward passes together.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices_BMN: Tensor, steps: int = 5) -> Tensor:
    """Each matrix with its singular values moved to about 1."""
    tall = matrices_BMN.shape[-2] > matrices_BMN.shape[-1]
    x = matrices_BMN.mT if tall else matrices_BMN
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Updates scaled to the root mean square that AdamW's have, so that one rate serves both."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                ahead = torch.stack([self._momentum(p, group["momentum"]) for p in params])
                scale = 0.2 * max(shape) ** 0.5
                for p, update in zip(params, orthogonalised(ahead), strict=True):
                    p.sub_(update, alpha=group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov: where the averaged gradient will be after one more step."""
        grad = p.grad
        assert grad is not None
        state = self.state[p]
        buffer: Tensor = state.setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)
