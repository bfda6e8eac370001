"""Gaussian noise that belongs to samples, not to batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError


class NoiseSource:
    """One random stream per sample: a sample's noise depends on its own seed and nothing else."""

    def __init__(self, seeds: Sequence[int]) -> None:
        if len(seeds) == 0:
            raise FlowOPDError("a noise source got no seeds; it needs one for each sample.")
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def draw(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal `[B, *shape]`, float32, drawn on the CPU and then moved to `device`."""
        draws = [torch.randn(*shape, generator=generator) for generator in self._generators]
        return torch.stack(draws).to(device, non_blocking=True)

    def state(self) -> Tensor:
        """Where every stream stands, `[B, n]` bytes, for `load_state`."""
        return torch.stack([generator.get_state() for generator in self._generators])

    def load_state(self, state: Tensor) -> None:
        """Go on drawing from where `state` was taken."""
        expected = self.state()
        if state.shape != expected.shape or state.dtype != expected.dtype:
            raise FlowOPDError(
                f"the saved noise state is {state.dtype} {list(state.shape)}; "
                f"a source of {len(self)} samples needs {expected.dtype} {list(expected.shape)}."
            )
        for generator, row in zip(self._generators, state.cpu(), strict=True):
            generator.set_state(row.clone())
