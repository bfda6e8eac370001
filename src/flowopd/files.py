"""Files that are whole or not there, and folders that can be written."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there takes its place on leaving."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        settle(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(file: Path) -> None:
    """Have a written file on the disk, with the rights that new files get here."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
    file.chmod(0o666 & ~_umask())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, and never half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def save_tensors(
    tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; what the disk refuses is an OSError, as of any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable(folder: Path) -> None:
    """Make the folder and see that a file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"flowopd")
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from None


def check_writable(folder: Path) -> None:
    """See that the folder could be made and written, leaving nothing behind."""
    existing = folder.absolute()
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        raise _unwritable(folder, f"{existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"{existing} may not be written")


def slug(text: str, length: int = 48) -> str:
    """A part of a file's name that tells what the text was."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].rstrip("-") or "prompt"


def _unwritable(folder: Path, reason: str) -> FlowOPDError:
    return FlowOPDError(
        f"The output folder {folder} cannot be written: {reason}. Choose another with --out."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
