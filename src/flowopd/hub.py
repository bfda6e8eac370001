"""What things on the Hugging Face hub are called, and what is said when they cannot be fetched."""

import re
from pathlib import PurePath
from typing import NamedTuple

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
FILES = (".safetensors", ".bin", ".pt", ".json", ".jsonl", ".txt", ".yaml", ".yml")
"""Endings of files: what has one is no repository."""


class HubName(NamedTuple):
    """A repository, and its branch, tag or commit; None: the hub's default branch."""

    repository: str
    revision: str | None = None


def hub_name(place: str | PurePath) -> HubName | None:
    """``org/name`` or ``org/name@revision``; None for what can only be a path."""
    text = place.as_posix() if isinstance(place, PurePath) else place
    repository, at, revision = text.partition("@")
    if REPOSITORY.fullmatch(repository) is None or repository.endswith(FILES):
        return None
    if not at:
        return HubName(repository)
    return HubName(repository, revision) if REVISION.fullmatch(revision) else None


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when something cannot be had, over whichever HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def not_fetched(repository: str, revision: str | None, error: Exception) -> str:
    """The sentence on a repository that is neither here nor on the hub."""
    at = f" at revision {revision}" if revision else ""
    reason = " ".join(str(error).split())
    return (
        f"{repository} is no folder here, and cannot be fetched from the Hugging Face hub{at}: "
        f"{reason}"
    )
