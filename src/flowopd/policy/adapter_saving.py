"""Writing an adapter so that PEFT, diffusers and this package all compute the same from it."""

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import save_tensors, settle, sha256
from flowopd.policy.adapter_files import NOTES, PEFT_CONFIG, PEFT_WEIGHTS, broken_keys
from flowopd.policy.adapter_keys import PEFT_PREFIX
from flowopd.policy.diffusers_lora import DIFFUSERS_WEIGHTS, write_diffusers
from flowopd.policy.lora import LoraSettings

_OURS = {PEFT_CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS, NOTES}


def write_adapter(
    folder: Path,
    config: LoraSettings,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    *,
    lora_prefix: str | None,
) -> None:
    """All files of an adapter, written aside and put in place at once."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    broken = broken_keys(tensors)
    if broken:
        raise FlowOPDError(
            f"The adapter is not saved to {folder}: {len(broken)} of its tensors have infinite or "
            f"undefined numbers ({', '.join(broken[:4])}). The training has diverged; go back to "
            "an earlier adapter."
        )
    with replacing_folder(folder, _OURS) as temporary:
        peft_config = config.to_config() | {"base_model_name_or_path": notes.get("base") or None}
        _write_json(temporary / PEFT_CONFIG, peft_config)
        prefixed = {PEFT_PREFIX + key: tensor for key, tensor in tensors.items()}
        save_tensors(prefixed, temporary / PEFT_WEIGHTS, metadata={"format": "pt"})
        if lora_prefix is not None:
            write_diffusers(temporary / DIFFUSERS_WEIGHTS, config, tensors, lora_prefix)
        weights = sorted(temporary.glob("*.safetensors"))
        digests = {file.name: sha256(file) for file in weights if file.name in _OURS}
        _write_json(temporary / NOTES, {**notes, "sha256": digests})


@contextlib.contextmanager
def replacing_folder(folder: Path, ours: set[str]) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` on leaving without an exception.

    Files in the old folder that are not `ours` are carried over. A process that is killed leaves
    the old folder or the new one, whole, and a hidden folder beside it. (Where the system cannot
    exchange two folders in one step, a kill between two renames leaves both in the hidden one.)
    A symbolic link stays, and the folder that it leads to is replaced.
    """
    folder = _resolved(folder)
    scratch: Path | None = None
    try:
        _require_replaceable(folder, ours)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        fresh = scratch / folder.name
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            settle(file)
        if folder.is_dir():
            _carry_over(folder, fresh, ours)
            _swap(fresh, folder)
        else:
            fresh.rename(folder)
    except OSError as error:
        raise FlowOPDError(f"Cannot save an adapter to {folder}: {error}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _resolved(folder: Path) -> Path:
    try:
        resolved, here = folder.resolve(), Path.cwd()
    except (OSError, RuntimeError) as error:
        raise FlowOPDError(f"Cannot save an adapter to {folder}: {error}.") from error
    if here.is_relative_to(resolved):
        raise FlowOPDError(
            f"Cannot save an adapter to {folder}: the current folder is in it, and would be "
            "replaced under this program. Name another folder, or start from elsewhere."
        )
    return resolved


def _require_replaceable(folder: Path, ours: set[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise FlowOPDError(f"Cannot save an adapter to {folder}: a file has that name.")
    if folder.is_dir():
        present = {entry.name for entry in folder.iterdir()}
        if present and not present & ours:
            raise FlowOPDError(
                f"Cannot save an adapter to {folder}: it holds other things "
                f"({', '.join(sorted(present)[:4])}). Name a new folder or an adapter's."
            )


def _carry_over(old: Path, fresh: Path, ours: set[str]) -> None:
    for entry in old.iterdir():
        if entry.name in ours or (fresh / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, fresh / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, fresh / entry.name, follow_symlinks=False)


def _swap(fresh: Path, folder: Path) -> None:
    """Exchange two folders in one step where the system can, else by two renames."""
    if not _exchange(fresh, folder):
        folder.rename(fresh.with_name(f"{fresh.name}.old"))
        fresh.rename(folder)


def _exchange(first: Path, second: Path) -> bool:
    """Linux's renameat2 with RENAME_EXCHANGE; False where there is none."""
    at_current_folder, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    status = renameat2(at_current_folder, names[0], at_current_folder, names[1], rename_exchange)
    return bool(status == 0)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
