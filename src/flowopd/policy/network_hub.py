"""Whole networks on the Hugging Face hub: looked at by their configuration, fetched when opened."""

from functools import cache
from pathlib import Path

from flowopd.errors import FlowOPDError
from flowopd.hub import HubName, hub_errors, hub_name, not_fetched

LOOKED_AT = ("model_index.json", "config.json", "transformer/config.json", "vae/config.json")
NOT_NEEDED = ["*.fp16*"]


def peek(place: Path) -> Path | None:
    """A folder with the configuration files of a repository; None for what is no name of one."""
    name = None if place.exists() else hub_name(place)
    return None if name is None else _snapshot(name, LOOKED_AT)


def fetch_weights(place: Path, part: str, commit: str) -> Path:
    """The folder of a repository with its configuration and the weights of one part of it.

    Those of the commit that was looked at, even if its branch has moved since.
    """
    name = hub_name(place)
    assert name is not None
    inside = f"{part}/" if part else ""
    return _snapshot(
        (name[0], commit), (*LOOKED_AT, f"{inside}*.safetensors", f"{inside}*.index.json")
    )


@cache
def _snapshot(name: HubName, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    repository, revision = name
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=NOT_NEEDED,
        )
    except hub_errors() as error:
        raise FlowOPDError(not_fetched(repository, revision, error)) from error
    return Path(folder)
