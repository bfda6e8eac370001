"""Loading one part of a pipeline's folder, of which every tensor must be there."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError

NAMED = 4
"""How many keys of one kind a sentence names."""


def load_part(kind: Any, folder: Path, precision: Mapping[str, Any]) -> Any:
    """A model of diffusers or transformers, frozen, with the weights of a folder.

    Both libraries go on where a tensor is absent: transformers fills it with random numbers, and
    diffusers leaves it without memory.
    """
    model, info = kind.from_pretrained(
        folder,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **precision,
    )
    _refuse(folder, "lack", info["missing_keys"])
    _refuse(folder, "have another shape of", [key for key, *_ in info["mismatched_keys"]])
    return model.requires_grad_(False).eval()


def _refuse(folder: Path, fault: str, keys: Iterable[str]) -> None:
    names = sorted(keys)
    if not names:
        return
    named = ", ".join(names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    raise FlowOPDError(
        f"The weights in {folder} {fault} {named}{more}, which its config.json asks for; "
        "download the folder again."
    )
