"""Reading LoRA adapters, in the folder formats of PEFT and of diffusers, and checking them.

From a folder or a weights file, or by a name on the Hugging Face hub.

PEFT:      adapter_config.json, adapter_model.safetensors   base_model.model.<path>.lora_A.weight
diffusers: pytorch_lora_weights.safetensors                 transformer.<path>.lora_A.weight
Beside either, `flowopd.json` says which base the adapter was trained on and by what.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.policy.adapter_hub import HubAdapter, fetch
from flowopd.policy.adapter_keys import PEFT_PREFIX, require_one_prefix, unwrapped
from flowopd.policy.diffusers_lora import DIFFUSERS_WEIGHTS, interpret
from flowopd.policy.lora import LoraSettings, parse_settings
from flowopd.policy.lora_match import linear_layers, match_all_keys
from flowopd.policy.weight_files import read_json, sha256_json

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
NOTES = "flowopd.json"
Layout = Literal["peft", "diffusers"]
_NO_PICKLE = (ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What torch.load raises on other files, beside pickle's own error."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read: float32 tensors under `<module path>.lora_A.weight` and `.lora_B.`"""

    source: Path
    """As it was named: a path, or a name on the hub."""
    layout: Layout
    config: LoraSettings
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]
    sha256: str
    """Of the weights file."""
    hub: HubAdapter | None = None
    """What was fetched, of an adapter on the hub."""

    @property
    def identity(self) -> str:
        """SHA-256 of all that it computes: the weights file, and the settings beside it."""
        return sha256_json([self.sha256, self.config.to_config()])

    @property
    def folder(self) -> Path:
        """Where its files are."""
        if self.hub is not None:
            return self.hub.folder
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def origin(self) -> dict[str, str]:
        """For records: the repository and the commit of an adapter on the hub; else nothing."""
        if self.hub is None:
            return {}
        return {"hub": self.hub.repository, "commit": self.hub.commit}


def read_adapter(place: str | Path) -> AdapterFiles:
    """An adapter from a folder of either format, from one weights file, or from the hub."""
    hub = fetch(place)
    weights = _find_weights(Path(place) if hub is None else hub.folder)
    notes_file = weights.parent / NOTES
    notes = read_json(notes_file) if notes_file.is_file() else {}
    digest = sha256(weights)
    recorded = _recorded_digest(notes, notes_file, weights.name)
    if recorded not in (None, digest):
        raise FlowOPDError(
            f"{weights} is not the file that {notes_file} describes: its SHA-256 is {digest}, not "
            f"{recorded}. Restore the file, or remove {NOTES} if it was changed on purpose."
        )
    raw, metadata = _read_tensors(weights)
    config_file = weights.parent / PEFT_CONFIG
    layout: Layout = "diffusers"
    if weights.stem == Path(PEFT_WEIGHTS).stem and config_file.is_file():
        layout = "peft"
        config = parse_settings(read_json(config_file), str(config_file))
        names = unwrapped(raw, PEFT_PREFIX, weights)
        require_one_prefix(names.values(), weights)
        tensors = {name.removeprefix(PEFT_PREFIX): raw[key] for key, name in names.items()}
    else:
        _require_no_peft_keys(raw, weights)
        config, tensors = interpret(raw, metadata, weights)
    tensors = {key: tensor.float() for key, tensor in tensors.items()}
    _require_finite(tensors, weights)
    return AdapterFiles(Path(place), layout, config, tensors, notes, digest, hub)


def check_adapter(
    place: str | Path, skeleton: nn.Module, fingerprint: str | None = None
) -> AdapterFiles:
    """Read an adapter and hold it against a model that need not have weights (meta device)."""
    files = read_adapter(place)
    require_fit(files, linear_layers(skeleton), fingerprint)
    return files


def require_fit(
    files: AdapterFiles, layers: Mapping[str, tuple[int, int]], fingerprint: str | None
) -> None:
    """All keys matched, and trained on the base of this fingerprint where that is known."""
    shapes = {key: tensor.shape for key, tensor in files.tensors.items()}
    match_all_keys(shapes, files.config, layers, str(files.source))
    trained_on = files.notes.get("fingerprint")
    if fingerprint and trained_on and trained_on != fingerprint:
        raise FlowOPDError(
            f"The adapter {files.source} was trained on another base: its {NOTES} says "
            f"{files.notes.get('base') or 'unnamed'} ({trained_on}), and this model is "
            f"{fingerprint}. Use it with its own base. (The same base saved again in another "
            "precision or with another configuration has another fingerprint, too.)"
        )


def _find_weights(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FlowOPDError(f"No adapter at {path}: there is no such file or folder.")
    stems = [Path(PEFT_WEIGHTS).stem] if (path / PEFT_CONFIG).is_file() else []
    stems.append(Path(DIFFUSERS_WEIGHTS).stem)
    for stem in stems:
        for suffix in (".safetensors", ".bin"):
            if (path / (stem + suffix)).is_file():
                return path / (stem + suffix)
    raise FlowOPDError(
        f"{path} is not an adapter folder. It should hold {PEFT_CONFIG} and {PEFT_WEIGHTS} (PEFT) "
        f"or {DIFFUSERS_WEIGHTS} (diffusers)."
    )


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and, of a safetensors file, the header's metadata. Never runs pickled code."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                return tensors, opened.metadata() or {}
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_NO_PICKLE) as error:
        raise FlowOPDError(
            f"{file} cannot be read as adapter weights: it is no plain table of tensors. "
            "Use an adapter's weights file, as PEFT or diffusers saves it."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise FlowOPDError(f"{file} cannot be read as adapter weights: {reason}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise FlowOPDError(f"{file} does not hold a flat table of tensors.")
    return tensors, {}


def _recorded_digest(notes: Mapping[str, Any], file: Path, weights: str) -> str | None:
    digests = notes.get("sha256", {})
    if not isinstance(digests, dict):
        raise FlowOPDError(
            f"{file}: sha256 is {digests!r}; it should map each weights file to its SHA-256. "
            "Restore the file, or leave sha256 out."
        )
    return digests.get(weights)


def broken_keys(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys of tensors that hold a NaN or an infinity."""
    return [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def _require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    broken = broken_keys(tensors)
    if broken:
        raise FlowOPDError(
            f"{file} holds infinite or undefined numbers in {len(broken)} of its tensors "
            f"({', '.join(broken[:4])}). It was saved from a run that had diverged, or is damaged."
        )


def _require_no_peft_keys(tensors: Mapping[str, Tensor], file: Path) -> None:
    if any(key.startswith(PEFT_PREFIX) for key in tensors):
        raise FlowOPDError(
            f"{file} has PEFT's keys and no {PEFT_CONFIG} beside it, which holds its alpha. "
            f"Put that file there, and name the weights {PEFT_WEIGHTS}."
        )
