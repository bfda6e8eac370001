"""Tensors of checkpoints: read safely, renamed from published layouts, and put into networks.

What a checkpoint lacks, or has besides, is refused by its published name.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = dict[str, "Tensor"]
POSITIONS = "position_ids"
"""A buffer that counts 0, 1, 2, ...; old checkpoints hold it, and nothing is learned in it."""
SHOWN = 8
WHOLE = ("model.safetensors", "pytorch_model.bin")


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file: safetensors, or a pickle of tensors and nothing else."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FlowOPDError(
            f"{path} holds more than tensors, or is no checkpoint (a git-lfs pointer looks like "
            f"this); what it holds is not run: {_first_line(error)}"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise FlowOPDError(
            f"The weights {path} cannot be read: {_first_line(error)}. Download them again."
        ) from error
    return _state(data, path)


def read_folder(folder: Path) -> Tensors:
    """The tensors of a network that transformers saved, whole or in shards."""
    for whole in WHOLE:
        index = folder / f"{whole}.index.json"
        if index.is_file():
            tensors: Tensors = {}
            for shard in _shards(index):
                tensors.update(read_tensors(folder / shard))
            return tensors
        if (folder / whole).is_file():
            return read_tensors(folder / whole)
    raise FlowOPDError(f"{folder} has no weights; it should hold {' or '.join(WHOLE)}.")


def fill(build: Callable[[], Any], tensors: Mapping[str, Tensor], where: Path) -> Any:
    """The network, in float32, with these tensors as its weights and no others.

    It is built without memory of its own, so that nothing is drawn at random first.
    """
    import torch

    with torch.device("meta"):
        network = build()
    given = {k: t for k, t in tensors.items() if k.rpartition(".")[2] != POSITIONS}
    wanted = network.state_dict()
    refuse(where, wanted.keys() - given.keys(), given.keys() - wanted.keys())
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise FlowOPDError(
                f"{where} has {name} of the shape {tuple(tensor.shape)}, where the network has "
                f"{tuple(wanted[name].shape)}; it is a checkpoint of another network."
            )
    network.load_state_dict({k: t.float() for k, t in given.items()}, assign=True)
    _count_positions(network)
    return network.requires_grad_(False).eval()


def refuse(where: Path, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise if there are such names."""
    parts = [
        f"{what} {', '.join(names[:SHOWN])}{' and so on' if len(names) > SHOWN else ''} "
        f"({len(names)})"
        for what, names in (("lacks", sorted(missing)), ("has the unknown", sorted(unknown)))
        if names
    ]
    if parts:
        raise FlowOPDError(
            f"The checkpoint {where} {' and '.join(parts)}; it is incomplete or of another network."
        )


class Conversion:
    """Tensors taken out of a checkpoint by their published names, and given ours.

    Whatever is asked for and not there is noted, and refused by `done` together with what is
    there and nobody asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: Path) -> None:
        self._left, self._where = dict(tensors), where
        self._missing: list[str] = []
        self._converted: Tensors = {}

    def shape(self, published: str) -> tuple[int, ...]:
        """A tensor's shape, by which the network is known."""
        if published not in self._left:
            refuse(self._where, [published], [])
        return tuple(self._left[published].shape)

    def count(self, pattern: str) -> int:
        """How many layers there are; the pattern's group is a layer's number."""
        found = (re.match(pattern, name) for name in self._left)
        return 1 + max((int(one[1]) for one in found if one), default=-1)

    def move(self, published: str, ours: str, *, transposed: bool = False) -> None:
        tensor = self._take(published)
        if tensor is not None:
            self._converted[ours] = tensor.T.contiguous() if transposed else tensor

    def move_both(self, published: str, ours: str) -> None:
        """A weight and its bias."""
        for part in ("weight", "bias"):
            self.move(f"{published}.{part}", f"{ours}.{part}")

    def split(self, published: str, ours: Sequence[str]) -> None:
        """Equal parts of a tensor, along its first dimension."""
        tensor = self._take(published)
        if tensor is not None:
            parts = tensor.chunk(len(ours))
            self._converted.update(zip(ours, parts, strict=False))

    def ignore(self, pattern: str) -> None:
        """Leave out what is not needed."""
        self._left = {k: t for k, t in self._left.items() if not re.fullmatch(pattern, k)}

    def done(self) -> Tensors:
        refuse(self._where, self._missing, self._left)
        return self._converted

    def _take(self, published: str) -> Tensor | None:
        tensor = self._left.pop(published, None)
        if tensor is None:
            self._missing.append(published)
        return tensor


def under(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Those whose names begin so, without that."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _state(data: Any, path: Path) -> Tensors:
    """The tensors by name, which some files hold beside other things as their state_dict."""
    import torch

    state = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise FlowOPDError(f"{path} should hold tensors by name, or such as its 'state_dict'.")
    return {str(name): tensor for name, tensor in state.items()}


def _shards(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FlowOPDError(
            f"{index} should name the file of each tensor (weight_map); download it again."
        ) from None


def _count_positions(network: nn.Module) -> None:
    """Give the buffers that are no part of a checkpoint what is always in them."""
    import torch

    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == POSITIONS, f"{name} has no value"
                numbers = torch.arange(buffer.shape[-1]).expand(buffer.shape)
                module.register_buffer(name, numbers, persistent=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
