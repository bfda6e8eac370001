"""What is trained: a LoRA in the bank, or all weights of a network of its own."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.bank import AdapterBank
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, module_path
from flowopd.policy.network import Network, in_its_place
from flowopd.policy.network_saving import write_network
from flowopd.policy.protocol import VelocityModel
from flowopd.training.ranks import Ranks
from flowopd.training.sharding import one_by_one, shard, spread


class Student(ABC):
    """Of every process. All of them call `save` and what takes whole tensors."""

    shared = False
    """Whether every process holds a share of the tensors, and takes part where they are used."""

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer gets, by key."""

    @abstractmethod
    def using(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model's velocity is the student's."""

    @abstractmethod
    def save(self, folder: Path, metadata: Mapping[str, Any], *, main: bool) -> None:
        """Its files with their notes, written by the main process."""

    def tensors(self) -> dict[str, Tensor]:
        """By key, as this process holds them."""
        return {key: parameter.detach() for key, parameter in self.parameters()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        shares = self.shares_of(state)
        for key, parameter in self.parameters():
            parameter.copy_(shares[key])

    def shares_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by key as this process holds them."""
        return {key: spread(state[key], parameter) for key, parameter in self.parameters()}

    def add_up(self, gradients: Sequence[Tensor], loss: Tensor, ranks: Ranks) -> None:
        """Make every process's gradients and loss the sums over all."""
        ranks.add([*gradients, loss])


class LoraStudent(Student):
    """The student of a bank."""

    def __init__(self, bank: AdapterBank, lora_prefix: str | None) -> None:
        assert bank.student is not None
        self.bank, self.name, self._prefix = bank, bank.student, lora_prefix

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self.bank.trainable_parameters()

    def using(self) -> contextlib.AbstractContextManager[Any]:
        return self.bank.using(self.name)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.bank.load_state_dict(self.name, state)

    def save(self, folder: Path, metadata: Mapping[str, Any], *, main: bool) -> None:
        if main:
            self.bank.save(self.name, folder, metadata=metadata, lora_prefix=self._prefix)


class FullStudent(Student):
    """A network in float32, all of it trained, computed with in the model's precision.

    Several processes keep a share of every tensor each (FSDP2), and gather a block's where it is
    used.
    """

    def __init__(self, model: VelocityModel, network: Network, processes: int) -> None:
        self.model, self.network = model, network
        self.shared = processes > 1
        self.transformer = network.transformer.requires_grad_(True)
        saved = set(self.transformer.state_dict())
        self._buffers = {k: b for k, b in self.transformer.named_buffers() if k in saved}
        if self.shared:
            shard(self.transformer, processes, model.device, model.dtype)
        elif model.dtype != torch.float32:
            lowered = torch.autocast(model.device.type, model.dtype)
            self.transformer.forward = lowered(self.transformer.forward)
        self._parameters = list(self.transformer.named_parameters())

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self._parameters

    def using(self) -> contextlib.AbstractContextManager[Any]:
        return in_its_place(self.model, self.transformer)

    def add_up(self, gradients: Sequence[Tensor], loss: Tensor, ranks: Ranks) -> None:
        """FSDP2 has averaged the gradients."""
        ranks.add([loss])
        for gradient in gradients if self.shared else []:
            gradient.mul_(ranks.count)

    def save(self, folder: Path, metadata: Mapping[str, Any], *, main: bool) -> None:
        lowered = {}
        for key, tensor in one_by_one(self.tensors()):
            if main:
                lowered[key] = tensor.to(self.model.dtype).cpu()
        if not main:
            return
        identity = {"base": self.model.name, "fingerprint": self.model.fingerprint}
        notes = {"role": "student", **metadata, **self.model.settings, **identity}
        write_network(folder, self.network.files.config, lowered | self._buffers, notes)


@torch.no_grad()
def fold_in(network: Network, files: AdapterFiles) -> None:
    """Add an adapter to a network's weights: `W + s B A`."""
    for key, down in files.tensors.items():
        if not key.endswith(A_SUFFIX):
            continue
        path = module_path(key)
        weight = network.transformer.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        product = files.config.scaling_of(path) * files.tensors[path + B_SUFFIX] @ down
        weight += product.to(weight)
