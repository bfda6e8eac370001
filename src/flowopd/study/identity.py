"""What tells one stage from another: its settings, and the content of all that they refer to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.evaluation.run import HOUSEKEEPING as MODEL_HOUSEKEEPING
from flowopd.files import sha256
from flowopd.hub import hub_name
from flowopd.policy.adapter_files import read_adapter
from flowopd.policy.network import find_network, read_network
from flowopd.policy.network_hub import peek
from flowopd.policy.protocol import ModelConfig
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.started import Started

WEIGHTS = (".safetensors", ".bin")


class Contents:
    """The content of files and adapters by path; each is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, Any] = {}

    def of(self, path: Path) -> Any:
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def _read(self, path: Path) -> Any:
        if not path.exists() and hub_name(path) is None:
            raise FlowOPDError(f"There is no file {path}.")
        if path.is_file() and path.suffix not in WEIGHTS:
            return {"sha256": sha256(path)}
        if find_network(peek(path) or path) is not None:
            return {"network": read_network(path).identity}
        adapter = read_adapter(path)
        return {"adapter": adapter.sha256, "settings": adapter.config.to_config()}


def identity(kind: str, covers: Any, made: Mapping[Path, str], contents: Contents) -> str:
    """SHA-256 of plain data in which every path stands for what is there.

    ``made`` are the adapters of other stages, with those stages' identities. The order of keys
    counts: batches are filled, and sums are rounded, in the order of tasks and terms.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return {"stage": made[value]} if value in made else contents.of(value)
        if isinstance(value, Mapping):
            if any(isinstance(key, Path) for key in value):
                return [[plain(key), plain(one)] for key, one in value.items()]
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return value

    text = json.dumps([kind, plain(covers)], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """By the fingerprints of the weights; by its name where they are only known once fetched."""
    fingerprint = model.fingerprint()
    if fingerprint is None:
        return model.model_dump(mode="json", exclude=MODEL_HOUSEKEEPING - {"path"})
    settings = model.model_dump(mode="json", exclude=MODEL_HOUSEKEEPING)
    return {"fingerprint": fingerprint, **model.surroundings(), **settings}


class Scorers(Started):
    """Scorers, for what is to be known of them beforehand."""

    def identity(self, spec: ScorerSpec) -> dict[str, Any]:
        """A plug-in by its version, a file by its content, and both by the settings that count."""
        settings = spec.identity()
        own = {"settings": settings} if settings else {}
        if spec.file is not None:
            return {"name": spec.name.rpartition(":")[2], "file": spec.file, **own}
        return {"name": spec.name, "version": self.get(spec).version, **own}
