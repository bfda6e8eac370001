"""A safetensors file written tensor by tensor, so that no copy of all of them is made."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowopd.policy.weight_files import LENGTH_BYTES

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 8
"""Of where the numbers begin."""


def in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they stand in a file: those of wide numbers first, so that each is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def write_tensors(
    path: Path, kinds: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> str:
    """Write the tensors as they come, and return the file's SHA-256.

    `kinds` are the same ones in the same order, of which only shape and type are read: they may
    be in shares.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(part: bytes | memoryview) -> None:
            file.write(part)
            digest.update(part)

        write(_header(kinds))
        for _, tensor in tensors:
            write(_numbers(tensor))
            del tensor  # before the next one comes
    return digest.hexdigest()


def _header(kinds: Mapping[str, Tensor]) -> bytes:
    entries, start = {}, 0
    for key, tensor in kinds.items():
        end = start + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[key] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _numbers(tensor: Tensor) -> memoryview:
    """Of the tensor, in memory that the host can read."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
