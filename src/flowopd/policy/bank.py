"""One frozen base network with any number of named LoRA adapters on it.

Weights in memory are base + N LoRAs instead of N networks. An adapter is switched on by
`with bank.using(name)`, which changes neither weights nor `requires_grad`: the student's parameters
always require a gradient, everything else never does.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowopd.errors import FlowOPDError
from flowopd.policy.adapter_files import AdapterFiles, read_adapter, require_fit
from flowopd.policy.adapter_saving import write_adapter
from flowopd.policy.lora import A_SUFFIX, ALL_LINEAR, LoraSettings
from flowopd.policy.lora_layers import BASE, LoraLinear, inject_lora, layer_parameters
from flowopd.policy.lora_match import expected_shapes, linear_layers, match_all_keys


class Role(StrEnum):
    """What an adapter is for. Only the student is trained, and there is at most one."""

    STUDENT = "student"
    TEACHER = "teacher"
    ANCHOR = "anchor"


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter in the bank."""

    name: str
    role: Role
    config: LoraSettings
    parameters: int
    source: Path | None
    sha256: str | None
    """Of the weights file that it was loaded from."""
    notes: Mapping[str, Any]
    """`flowopd.json` of the folder that it was loaded from."""


@dataclass(frozen=True)
class _Adapter:
    info: AdapterInfo
    key: str
    """The name inside the layers, where dots are not allowed."""
    layers: Mapping[str, LoraLinear]

    def parameters(self) -> dict[str, nn.Parameter]:
        return layer_parameters(self.layers, self.key)


class AdapterBank:
    """Named adapters on one transformer, which it freezes and puts in charge of switching.

    Gradient checkpointing as diffusers' models have it recomputes with the adapter that was active
    in the forward pass, whatever is active by then.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        base_name: str = "",
        fingerprint: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """The base's name, fingerprint and settings are written beside every adapter it saves."""
        if hasattr(transformer, "peft_config") or any(
            isinstance(module, LoraLinear) for module in transformer.modules()
        ):
            raise FlowOPDError("The transformer already has adapters; a bank needs a plain one.")
        self.transformer = transformer.requires_grad_(False)
        self.base_name = base_name
        self.fingerprint = fingerprint
        self.settings = dict(settings or {})
        self._base_layers = linear_layers(transformer)
        self._adapters: dict[str, _Adapter] = {}
        self._layers: dict[str, LoraLinear] = {}
        """Every layer that some adapter adapts, by path."""
        self._active: str | None = None
        self._checkpointing: list[Any] = [
            module for module in transformer.modules() if hasattr(module, "gradient_checkpointing")
        ]
        self._take_over_checkpointing()

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """By name, in the order in which they came."""
        return {name: adapter.info for name, adapter in self._adapters.items()}

    @property
    def active(self) -> str | None:
        """The adapter that a forward pass would use now; None is the base."""
        return self._active

    @property
    def student(self) -> str | None:
        roles = {adapter.info.role: name for name, adapter in self._adapters.items()}
        return roles.get(Role.STUDENT)

    def create(
        self,
        name: str,
        role: Role,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int = 0,
    ) -> AdapterInfo:
        """A new adapter that changes nothing yet: A uniform in ±1/sqrt(in), B zero.

        `targets` are endings of module paths, or "all-linear".
        """
        self._require_free(name, role)
        if rank < 1:
            raise FlowOPDError(f"Adapter {name!r}: the rank is {rank}; it must be at least 1.")
        if not targets or (isinstance(targets, str) and targets != ALL_LINEAR):
            raise FlowOPDError(
                f"Adapter {name!r}: the targets are {targets!r}; they should be a list of names of "
                f"linear layers, or {ALL_LINEAR!r}."
            )
        everywhere = targets == ALL_LINEAR
        settings = LoraSettings(rank, float(alpha), ALL_LINEAR if everywhere else tuple(targets))
        shapes = expected_shapes(settings, self._base_layers)
        for target in () if everywhere else targets:
            if not LoraSettings(rank, alpha, (target,)).select(self._base_layers):
                raise FlowOPDError(
                    f"Adapter {name!r}: the target {target!r} names no linear layer of this model. "
                    f"It has layers such as {', '.join(list(self._base_layers)[-3:])}."
                )
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
        for key, tensor in tensors.items():
            if key.endswith(A_SUFFIX):
                bound = tensor.shape[1] ** -0.5
                tensor.uniform_(-bound, bound, generator=generator)
        return self._add(name, role, settings, tensors)

    def copy(self, name: str, source: str, role: Role) -> AdapterInfo:
        """A new adapter with the settings and the present values of another."""
        self._require_free(name, role)
        tensors = {key: tensor.clone() for key, tensor in self.state_dict(source).items()}
        return self._add(name, role, self._find(source).info.config, tensors)

    def load(self, name: str, adapter: str | Path | AdapterFiles, role: Role) -> AdapterInfo:
        """An adapter in PEFT's or diffusers' format (or as read), if every key has its place."""
        self._require_free(name, role)
        files = adapter if isinstance(adapter, AdapterFiles) else read_adapter(adapter)
        require_fit(files, self._base_layers, self.fingerprint)
        return self._add(
            name, role, files.config, files.tensors, files.source, files.sha256, files.notes
        )

    def fold(self, name: str) -> None:
        """Trade memory for speed: keep copies of the layers that a frozen adapter adapts, with
        the adapter in them. They have the base's precision, and so a little of its rounding."""
        adapter = self._find(name)
        if adapter.info.role is Role.STUDENT:
            raise FlowOPDError(f"The student {name!r} is trained; only frozen adapters are folded.")
        for layer in adapter.layers.values():
            layer.fold(adapter.key)

    def rounding(self, name: str) -> float:
        """How far a folded adapter is from what it was, as a share of what it changes."""
        adapter = self._find(name)
        squares = [layer.rounding(adapter.key) for layer in adapter.layers.values()]
        error, change = torch.stack(squares).sum(0).sqrt().tolist()
        return error / change if change else 0.0

    def using(self, name: str | None) -> contextlib.AbstractContextManager[None]:
        """Forward passes inside use this adapter, or with None the base.

        Passes, not objects made inside: a rollout is lazy, and each of its steps uses the adapter
        that is active when that step is taken. Iterate it inside.
        """
        if name is not None:
            self._find(name)
        self._take_over_checkpointing()
        return _Using(self, name)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The student's parameters by key, for the optimizer."""
        if self.student is None:
            raise FlowOPDError("There is nothing to train: no adapter has the role of student.")
        parameters = list(self._adapters[self.student].parameters().items())
        for key, parameter in parameters:
            if parameter.dtype != torch.float32:
                raise FlowOPDError(
                    f"The student's {key} is {parameter.dtype}; adapters are trained in "
                    "torch.float32. Convert the transformer before the bank is made, not after."
                )
        return parameters

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors by key, sharing memory with the network."""
        return {key: p.detach() for key, p in self._find(name).parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Copy tensors into an adapter; every key and shape must be the same."""
        adapter = self._find(name)
        shapes = {key: tensor.shape for key, tensor in state.items()}
        match_all_keys(shapes, adapter.info.config, self._base_layers, f"state for {name!r}")
        for key, parameter in adapter.parameters().items():
            parameter.copy_(state[key])

    def save(
        self, name: str, folder: str | Path, *, metadata: Mapping[str, Any], lora_prefix: str | None
    ) -> None:
        """A folder that PEFT loads, and diffusers too if it has a prefix for this family.

        `metadata` goes into `flowopd.json`, beside the role and the base's name, fingerprint and
        settings; where the two name the same key, what the bank knows is written.
        """
        info = self._find(name).info
        identity = {"role": str(info.role), "base": self.base_name, "fingerprint": self.fingerprint}
        known = self.settings | {key: value for key, value in identity.items() if value}
        write_adapter(
            Path(folder),
            info.config,
            self.state_dict(name),
            identity | dict(metadata) | known,
            lora_prefix=lora_prefix,
        )

    def _add(
        self,
        name: str,
        role: Role,
        settings: LoraSettings,
        tensors: Mapping[str, Tensor],
        source: Path | None = None,
        digest: str | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> AdapterInfo:
        size = sum(tensor.numel() for tensor in tensors.values())
        info = AdapterInfo(name, Role(role), settings, size, source, digest, notes or {})
        key = f"{len(self._adapters)}_{re.sub(r'[^0-9A-Za-z]', '_', name)}"
        layers = inject_lora(self.transformer, key, settings, tensors)
        self._adapters[name] = _Adapter(info, key, layers)
        self._layers |= layers
        if info.role is Role.STUDENT:
            for _, parameter in self.trainable_parameters():
                parameter.requires_grad_(True)
        return info

    def _activate(self, name: str | None) -> None:
        if name == self._active:
            return
        key = BASE if name is None else self._adapters[name].key
        for layer in self._layers.values():
            layer.select(key)
        self._active = name

    def _find(self, name: str) -> _Adapter:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise FlowOPDError(f"There is no adapter named {name!r}. Known adapters: {known}.")
        return self._adapters[name]

    def _require_free(self, name: str, role: Role) -> None:
        if name in self._adapters:
            raise FlowOPDError(f"There is already an adapter named {name!r}; names are unique.")
        if Role(role) is Role.STUDENT and self.student is not None:
            raise FlowOPDError(
                f"Adapter {name!r} cannot be a student: {self.student!r} is, and a bank has one."
            )

    def _take_over_checkpointing(self) -> None:
        for module in self._checkpointing:
            module._gradient_checkpointing_func = self._checkpoint

    def _checkpoint(self, module: nn.Module, *inputs: Any) -> Any:
        active = self._active
        return checkpoint(
            module,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _Using(self, active)),
        )


class _Using(contextlib.AbstractContextManager[None]):
    """Switches on entering and back on leaving; may be entered again, as a recomputation is."""

    def __init__(self, bank: AdapterBank, name: str | None) -> None:
        self._bank = bank
        self._name = name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(self._bank.active)
        self._bank._activate(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bank._activate(self._before.pop())
