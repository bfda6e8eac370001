"""Adapters on the Hugging Face hub: `org/name`, or `org/name@revision`."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from flowopd.errors import FlowOPDError
from flowopd.hub import HubName, hub_errors, hub_name, not_fetched

WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
FETCHED = ("adapter_config.json", "flowopd.json", *WEIGHTS)
"""What is fetched of a repository. Pickled weights (.bin) are not: they can run code."""


class HubAdapter(NamedTuple):
    """An adapter of the hub, in the hub's local cache."""

    repository: str
    commit: str
    """What the revision was when it was fetched; empty where the cache does not say."""
    folder: Path


def fetch(place: str | Path) -> HubAdapter | None:
    """The adapter that a name on the hub means; None for a path, or what is here as one.

    A process asks once for each name, so that all of its work is on one commit.
    """
    path = Path(place)
    name = None if path.exists() else hub_name(path)
    return None if name is None else _fetched(name)


@cache
def _fetched(name: HubName) -> HubAdapter:
    from huggingface_hub import snapshot_download

    repository, revision = name
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED))
        )
    except hub_errors() as error:
        raise FlowOPDError(not_fetched(repository, revision, error)) from error
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise FlowOPDError(
            f"{repository} is on the Hugging Face hub, but there is no adapter in it that can be "
            f"used (or it was fetched in part): it should hold {WEIGHTS[0]} with {FETCHED[0]} "
            f"(PEFT) or {WEIGHTS[1]} (diffusers), at its top."
        )
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return HubAdapter(repository, commit, folder)
