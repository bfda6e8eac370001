"""Safetensors files on disk: which make up a part, whether they are whole, what identifies them.

Nothing here loads a tensor.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowopd.errors import FlowOPDError

SAMPLE_BYTES = 1024
"""How much of each tensor goes into a fingerprint, from the tensor's middle."""
LENGTH_BYTES = 8
MAX_HEADER = 100_000_000


class Header(NamedTuple):
    """The tensors of one safetensors file, by name, and where their bytes begin."""

    tensors: dict[str, dict[str, Any]]
    data_start: int


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlowOPDError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise FlowOPDError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(data, dict):
        raise FlowOPDError(f"{path} should hold a JSON object, and holds a {type(data).__name__}.")
    return data


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files of one part's weights: ``stem.safetensors``, or the shards that its index names."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise FlowOPDError(
                f"{index} should have a weight_map that names the file of each tensor, and has "
                f"{str(shards)[:80]!r}; download it again."
            )
        return [folder / name for name in sorted(set(names))]
    return [folder / f"{stem}.safetensors"]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, after checking that the file is whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            text = file.read(length) if length <= min(size, MAX_HEADER) else b""
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        data_end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except FileNotFoundError:
        raise FlowOPDError(f"The weights {path} are missing.") from None
    except OSError as error:
        raise FlowOPDError(f"The weights {path} cannot be read: {error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise FlowOPDError(
            f"{path} is no safetensors file; download it again (a git-lfs pointer looks like this)."
        ) from None
    expected = LENGTH_BYTES + length + data_end
    if size != expected:
        raise FlowOPDError(
            f"{path} has {size} bytes where its header promises {expected}; download it again."
        )
    return Header(tensors, LENGTH_BYTES + length)


def fingerprint(config: dict[str, Any], files: Sequence[Path]) -> str:
    """SHA-256 that tells one network's weights from another's, in milliseconds even for 5 GB.

    Hashed are the configuration without its private keys (``_diffusers_version``, ...) and, by
    name, every tensor's type, shape and SAMPLE_BYTES from its middle. It does not depend on how
    the tensors are split over files, and it changes when any tensor's middle does, as it does
    when weights are trained or merged; a change elsewhere within one tensor goes unseen.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    digests = {}
    for path in files:
        header = read_header(path)
        with path.open("rb") as file:
            for name, entry in header.tensors.items():
                begin, end = entry["data_offsets"]
                start = max(begin, (begin + end - SAMPLE_BYTES) // 2)
                file.seek(header.data_start + start)
                sample = file.read(min(SAMPLE_BYTES, end - start))
                kind = f"{entry['dtype']} {entry['shape']} "
                digests[name] = hashlib.sha256(kind.encode() + sample).hexdigest()
    return sha256_json({"config": public, "tensors": digests})


def sha256_json(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
