"""Checkpoints: everything that going on needs, in folders that are whole or not there.

`state.safetensors` holds the tensors under `<part>/<key>`, `state.json` the rest with the
tensors' SHA-256 and one of its own.
"""

import hashlib
import json
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import settle, sha256
from flowopd.training.sharding import one_by_one
from flowopd.training.tensor_file import in_order, write_tensors

TENSORS, RECORD, PREFIX = "state.safetensors", "state.json", "update-"
NAME = re.compile(rf"{PREFIX}\d{{8}}")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: tensors by part and key, and plain values."""

    tensors: dict[str, dict[str, Tensor]]
    record: dict[str, Any]


class Checkpoints:
    """The last `keep` checkpoints of a run, in one folder."""

    def __init__(self, folder: Path, *, recipe: str, keep: int) -> None:
        """`recipe` tells one run from another: checkpoints of another are refused."""
        self.folder, self._recipe, self._keep = folder, recipe, keep

    def save(
        self,
        update: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        record: Mapping[str, Any],
        *,
        main: bool = True,
    ) -> Path:
        """Write a checkpoint aside, put it in place, and drop those that are too many.

        One of this update that is whole already stays as it is. Where tensors are in shares all
        processes save, of which the `main` one writes.
        """
        final = self.folder / f"{PREFIX}{update:08d}"
        flat = in_order(
            {f"{part}/{k}": v for part, found in tensors.items() for k, v in found.items()}
        )
        coming = one_by_one(flat)
        try:
            if main:
                self._put(final, flat, coming, {**record, "update": update})
        finally:
            deque(coming, maxlen=0)  # the others wait for this process with each of them
        return final

    def _put(
        self,
        final: Path,
        kinds: Mapping[str, Tensor],
        tensors: Iterable[tuple[str, Tensor]],
        record: Mapping[str, Any],
    ) -> None:
        if not self._whole(final):
            try:
                self._write(final, kinds, tensors, {**record, "recipe": self._recipe})
            except OSError as error:
                self._sweep()
                raise FlowOPDError(
                    f"The checkpoint {final} cannot be written: {error}. Those before it are as "
                    "they were; the same command goes on from the last of them."
                ) from None
        # What is newer was passed over as damaged, and must not push out what is whole.
        kept = [path for path in self.found() if path.name <= final.name][-self._keep :]
        for path in self.found():
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _write(
        self,
        final: Path,
        kinds: Mapping[str, Tensor],
        tensors: Iterable[tuple[str, Tensor]],
        record: Mapping[str, Any],
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        scratch = self.folder / f".{final.name}"
        scratch.mkdir()
        digest = write_tensors(scratch / TENSORS, kinds, tensors)
        settle(scratch / TENSORS)
        body = {**record, "tensors": digest}
        sealed = {"state": body, "sha256": _seal(body)}
        (scratch / RECORD).write_text(json.dumps(sealed) + "\n", encoding="utf-8")
        settle(scratch / RECORD)
        if final.exists():  # a damaged one
            shutil.rmtree(final)
        scratch.rename(final)

    def found(self) -> list[Path]:
        """The folders of checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def latest(self) -> Saved | None:
        """The newest checkpoint that is whole; those that are not are named and passed over."""
        for path in reversed(self.found()):
            try:
                return self._read(path)
            except _DamagedError as error:
                print(f"warning: the checkpoint {path} is {error}; not used.", file=sys.stderr)
        return None

    def _whole(self, path: Path) -> bool:
        try:
            self._read(path)
        except _DamagedError:
            return False
        return True

    def _read(self, path: Path) -> Saved:
        try:
            sealed = json.loads((path / RECORD).read_text(encoding="utf-8"))
            body, seal = sealed["state"], sealed["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"torn ({RECORD}: {error})") from None
        if _seal(body) != seal:
            raise _DamagedError(f"damaged ({RECORD} is not what was written)")
        try:
            if sha256(path / TENSORS) != body["tensors"]:
                raise _DamagedError(f"damaged ({TENSORS} is not what was written)")
            flat = load_file(path / TENSORS)
        except (OSError, SafetensorError) as error:
            raise _DamagedError(f"torn ({TENSORS}: {error})") from None
        if body["recipe"] != self._recipe:
            raise FlowOPDError(
                f"The checkpoint {path} is of another recipe (other settings, prompts, teachers or "
                "base). Choose another output folder, or go back to the recipe that it was made "
                "with."
            )
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            part, _, key = name.partition("/")
            tensors.setdefault(part, {})[key] = tensor
        return Saved(tensors, body)

    def _sweep(self) -> None:
        """Remove what a killed save left."""
        for path in self.folder.glob(f".{PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


class _DamagedError(Exception):
    """A checkpoint that cannot be used."""


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
