"""A student all of whose weights are trained, on the meta device.

There is no autocast there, so that what it does on a GPU is done layer by layer; and nothing can be
spread over processes, so that one process computes with the whole network in the precision in which
its blocks are gathered, and the shares are worked out.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopd.planning.needs import Phase, Rehearsed
from flowopd.planning.outline import META, bytes_in, bytes_of
from flowopd.policy.network import Expert, Network, NetworkFiles, in_its_place
from flowopd.policy.protocol import ModelConfig, VelocityModel
from flowopd.training.ranks import Ranks
from flowopd.training.student import Student

FLOAT = 4
GATHERED = 2
"""Blocks that are whole at a time: the one that computes, and the next."""


class ImaginedFullStudent(Student):
    """Takes the place of a `FullStudent`."""

    def __init__(self, model: VelocityModel, network: Network) -> None:
        self._model = model
        self.transformer = network.transformer.requires_grad_(True)
        if next(self.transformer.parameters()).dtype != model.dtype:
            lowered = Casting(self.transformer, model.dtype)
            self.transformer.forward = lowered.while_in(self.transformer.forward)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.transformer.named_parameters())

    def using(self) -> contextlib.AbstractContextManager[Any]:
        return in_its_place(self._model, self.transformer)

    def add_up(self, gradients: Sequence[Tensor], loss: Tensor, ranks: Ranks) -> None:
        """Gradients are added up as they are made."""

    def save(self, folder: Path, metadata: Mapping[str, Any], *, main: bool) -> None:
        raise NotImplementedError


def full_student(
    config: ModelConfig, start: Expert | None, model: VelocityModel, devices: int
) -> ImaginedFullStudent:
    """In float32 on one device; in the model's precision, as it is gathered, on several."""
    files = start if isinstance(start, NetworkFiles) else config.own_network()
    dtype = torch.float32 if devices == 1 else model.dtype
    return ImaginedFullStudent(model, config.open_network(files, META, dtype))


class Casting:
    """What autocast does to the layers of a network in float32: products in a lower precision,
    normalisations in float32; weights are cast once in a call of the network."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._cast: dict[int, Tensor] | None = None
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.forward = self._product(module)  # type: ignore[method-assign]
            elif isinstance(module, nn.LayerNorm):
                module.forward = self._normalised(module)  # type: ignore[method-assign]

    def while_in(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The network's forward, in which weights that were cast are found again."""

        def cast(*args: Any, **kwargs: Any) -> Any:
            self._cast = {}
            try:
                return forward(*args, **kwargs)
            finally:
                self._cast = None

        return cast

    def _product(self, layer: nn.Linear | nn.Conv2d) -> Any:
        def forward(x: Tensor) -> Tensor:
            x, weight = x.to(self._dtype), self._lower(layer.weight)
            bias = None if layer.bias is None else self._lower(layer.bias)
            if isinstance(layer, nn.Linear):
                return functional.linear(x, weight, bias)
            return layer._conv_forward(x, weight, bias)

        return forward

    def _normalised(self, layer: nn.LayerNorm) -> Any:
        return lambda x: functional.layer_norm(
            x.float(), layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )

    def _lower(self, weight: Tensor) -> Tensor:
        if self._cast is None:
            return weight.to(self._dtype)
        if id(weight) not in self._cast:
            self._cast[id(weight)] = weight.to(self._dtype)
        return self._cast[id(weight)]


def in_shares(found: Rehearsed, student: ImaginedFullStudent, devices: int) -> Rehearsed:
    """Of one of several devices, from what one with the whole network would need."""
    share = FLOAT * found.parameters // devices
    trained = [parameter for _, parameter in student.parameters()]
    buffers = bytes_of(student.transformer) - bytes_in(trained)
    peaks = dict(found.peaks)
    peaks[Phase.STEP] = peaks.get(Phase.STEP, 0) * share // bytes_in(trained)
    whole = _gathered(student.transformer)
    for phase in (Phase.DRAW, Phase.TRAIN, Phase.PROBE):
        if phase in peaks:
            peaks[phase] += whole
    if found.averages and Phase.PROBE in peaks:  # weights wait while their averages are used
        peaks[Phase.PROBE] += share - bytes_in(trained)
    return replace(
        found,
        student=share + buffers,
        gradients=share,
        optimizer=2 * share,
        averages=share if found.averages else 0,
        peaks=peaks,
    )


def _gathered(transformer: nn.Module) -> int:
    """What is whole at a time: everything outside blocks, some blocks, and one's gradients in
    float32 on their way to the other devices."""
    lists = [part for part in transformer.children() if isinstance(part, nn.ModuleList)]
    blocks = [bytes_of(block) for part in lists for block in part]
    largest = max(blocks, default=0)
    itemsize = next(transformer.parameters()).itemsize
    return bytes_of(transformer) - sum(blocks) + GATHERED * largest + FLOAT * largest // itemsize
