"""Whole networks beside the base: teachers that are no LoRA, of any size, over the same latents."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowopd.errors import FlowOPDError
from flowopd.policy.adapter_files import NOTES, AdapterFiles, check_adapter
from flowopd.policy.network_hub import fetch_weights, peek
from flowopd.policy.protocol import ModelConfig, PromptEmbeds, VelocityModel
from flowopd.policy.weight_files import fingerprint, read_header, read_json, weight_files

WEIGHTS = "diffusion_pytorch_model"
CLASS = "_class_name"

NetworkVelocity = Callable[[nn.Module, Tensor, Tensor, PromptEmbeds], Tensor]
"""`(transformer, x [B,...], t [B], prompts) -> v [B,...]` in float32."""


@dataclass(frozen=True)
class NetworkFiles:
    """A network that has been looked at, and is not loaded."""

    source: Path
    """As it was named: a path, or a name on the hub."""
    folder: Path
    """With its config.json."""
    config: Mapping[str, Any]
    identity: str
    """Tells one network's weights from another's."""
    notes: Mapping[str, Any]
    """`flowopd.json` beside it."""
    commit: str = ""
    """Of a network on the hub."""

    @property
    def sha256(self) -> str:
        return self.identity

    @property
    def origin(self) -> dict[str, str]:
        """For records: the repository and the commit of a network on the hub; else nothing."""
        return {"hub": str(self.source), "commit": self.commit} if self.commit else {}

    def fetched(self) -> Path:
        """The folder with the weights, too."""
        if not self.commit:
            return self.folder
        part = "transformer" if self.folder.name == "transformer" else ""
        return fetch_weights(self.source, part, self.commit) / part


Expert = AdapterFiles | NetworkFiles
"""What can teach, or be gone on from."""


def check_expert(
    config: ModelConfig, source: Path, skeleton: nn.Module, fingerprint: str | None
) -> Expert:
    """An adapter that fits the model, or a whole network that can teach it; else a sentence."""
    if find_network(peek(source) or source) is not None:
        return config.network(source)
    return check_adapter(source, skeleton, fingerprint)


def find_network(source: Path) -> Path | None:
    """The folder with a network's config.json, as diffusers writes it: this one, or its
    `transformer`; None if there is neither."""
    for folder in (source, source / "transformer"):
        path = folder / "config.json"
        if path.is_file() and CLASS in read_json(path):
            return folder
    return None


def read_network(source: Path) -> NetworkFiles:
    """What a folder, or a repository on the hub, holds of a whole network; nothing is loaded."""
    hub = peek(source)
    folder = find_network(hub or source)
    if folder is None:
        raise FlowOPDError(
            f"{source} holds no network: there is no config.json with a {CLASS} in it, or in its "
            "folder transformer."
        )
    config = read_json(folder / "config.json")
    notes = read_json(folder / NOTES) if (folder / NOTES).is_file() else {}
    if hub is not None:
        return NetworkFiles(source, folder, config, f"{source} at {hub.name}", notes, hub.name)
    files = weight_files(folder, WEIGHTS)
    for file in files:
        read_header(file)
    return NetworkFiles(source, folder, config, fingerprint(config, files), notes)


@contextmanager
def in_its_place(model: VelocityModel, transformer: nn.Module) -> Iterator[None]:
    """Inside, the model's velocity is that of another transformer."""
    before, model.transformer = model.transformer, transformer
    try:
        yield
    finally:
        model.transformer = before


class Network:
    """A frozen transformer of its own, on the device or, between visits, in host memory."""

    def __init__(
        self, files: NetworkFiles, transformer: nn.Module, velocity: NetworkVelocity
    ) -> None:
        self.files = files
        self.transformer = transformer.requires_grad_(False).eval()
        self._velocity = velocity
        self._home: dict[str, Tensor] = {}

    def velocity(self, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
        return self._velocity(self.transformer, x, t, prompts)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return dict(self.transformer.named_parameters()) | dict(self.transformer.named_buffers())

    def bring(self, device: torch.device) -> None:
        """To the device; what is in host memory stays there, for the way back."""
        tensors = self.tensors
        if not self._home:
            self._home = {name: _pinned(tensor.data, device) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.data = self._home[name].to(device, non_blocking=True)

    def release(self) -> None:
        """Free the device's memory. Nothing is copied: a frozen network is as it came."""
        for name, tensor in self.tensors.items():
            tensor.data = self._home[name]


class Visitors:
    """Networks that wait in host memory, of which at most ``places`` are on the device."""

    def __init__(self, device: torch.device, places: int) -> None:
        self._device, self.places = device, places
        self._here: OrderedDict[int, Network] = OrderedDict()

    def bring(self, network: Network) -> None:
        """Onto the device, where the one that was not used for longest makes room."""
        if id(network) not in self._here:
            while len(self._here) >= self.places:
                self._here.popitem(last=False)[1].release()
            network.bring(self._device)
            self._here[id(network)] = network
        self._here.move_to_end(id(network))


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU can read on its own."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
