"""Writing a whole network so that diffusers opens it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import save_tensors
from flowopd.policy.adapter_files import NOTES, broken_keys
from flowopd.policy.adapter_saving import replacing_folder
from flowopd.policy.network import WEIGHTS

LARGEST = 10_000_000_000
"""Bytes of one file; what is more goes into further ones."""


def write_network(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    largest: int = LARGEST,
) -> None:
    """config.json, weights and flowopd.json, written aside and put in place at once."""
    broken = broken_keys(tensors)
    if broken:
        raise FlowOPDError(
            f"The network is not saved to {folder}: {len(broken)} of its tensors have infinite or "
            f"undefined numbers ({', '.join(broken[:4])}). The training has diverged; go back to "
            "an earlier checkpoint."
        )
    files = _files(tensors, largest)
    index = f"{WEIGHTS}.safetensors.index.json"
    with replacing_folder(folder, {"config.json", NOTES, index, *files}) as fresh:
        (fresh / "config.json").write_text(_json(config), encoding="utf-8")
        for name, keys in files.items():
            held = {key: tensors[key].detach().cpu().contiguous() for key in keys}
            save_tensors(held, fresh / name, metadata={"format": "pt"})
        if len(files) > 1:
            places = {key: name for name, keys in files.items() for key in keys}
            size = sum(tensor.nbytes for tensor in tensors.values())
            text = _json({"metadata": {"total_size": size}, "weight_map": places})
            (fresh / index).write_text(text, encoding="utf-8")
        (fresh / NOTES).write_text(_json(notes), encoding="utf-8")


def _files(tensors: Mapping[str, Tensor], largest: int) -> dict[str, list[str]]:
    """The keys of each file, by its name as diffusers would give it."""
    groups: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += tensor.nbytes
    if len(groups) == 1:
        return {f"{WEIGHTS}.safetensors": groups[0]}
    return {
        f"{WEIGHTS}-{number:05d}-of-{len(groups):05d}.safetensors": keys
        for number, keys in enumerate(groups, 1)
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), indent=2, default=str) + "\n"
