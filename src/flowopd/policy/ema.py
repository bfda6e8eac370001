"""An exponential moving average of the student's parameters."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flowopd.errors import FlowOPDError


class EMA:
    """`average ← decay · average + (1 - decay) · parameter`, every `every` optimizer steps.

    Averages start at the parameters' present values and are float32 whatever the parameters are.
    """

    def __init__(
        self, parameters: Sequence[tuple[str, nn.Parameter]], decay: float = 0.9, every: int = 1
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise FlowOPDError(f"The decay of an EMA is at least 0 and below 1, not {decay}.")
        if every < 1:
            raise FlowOPDError(f"An EMA is updated every 1 or more steps, not every {every}.")
        self.decay = decay
        self.every = every
        self._parameters = dict(parameters)
        if not self._parameters:
            raise FlowOPDError("An EMA needs parameters to average, and was given none.")
        self._averages = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }
        self._swapped = False

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """After optimizer step number `step` (from 1): True if the averages moved."""
        self._require_own_values("update")
        if step % self.every:
            return False
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].float(), 1.0 - self.decay)
        return True

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters hold their averages inside, and what they held before afterwards."""
        self._require_own_values("swap")
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._swapped = True
        try:
            self._fill(self._averages)
            yield
        finally:
            self._fill(before)
            self._swapped = False

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Averages from `state_dict`; every name and shape must be the same."""
        self._require_own_values("load")
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        own = {name: list(tensor.shape) for name, tensor in self._averages.items()}
        differing = sorted(
            name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name)
        )
        if differing:
            raise FlowOPDError(
                f"These averages are of other parameters: {len(differing)} differ in name or shape "
                f"({', '.join(differing[:4])})."
            )
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def _require_own_values(self, action: str) -> None:
        if self._swapped:
            raise FlowOPDError(f"Cannot {action} an EMA while its averages are swapped in.")
