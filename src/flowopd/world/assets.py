"""The weights that ship with the package, each with its recipe and checksum beside it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowopd.errors import FlowOPDError
from flowopd.files import replacing, save_tensors, sha256, write_atomic
from flowopd.world.network import TRANSFORMER, WorldNetwork

FOLDER = Path(__file__).parent / "assets"
WEIGHTS = "base.safetensors"
CARD = "base.json"


def save_base(network: WorldNetwork, folder: Path, recipe: dict[str, Any]) -> Path:
    """Writes base.safetensors and base.json: what made it, its architecture and its SHA-256."""
    path = folder / WEIGHTS
    with replacing(path) as temporary:
        save_tensors({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
    card = {"sha256": sha256(path), "recipe": recipe, "transformer": TRANSFORMER}
    write_atomic(folder / CARD, json.dumps(card, indent=2) + "\n")
    return path


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a base, after checking that it is there and of this architecture."""
    card_path, path = folder / CARD, folder / WEIGHTS
    for needed in (card_path, path):
        if not needed.is_file():
            raise FlowOPDError(
                f"{folder} holds no base model of the world: {needed.name} is missing. "
                f"'flowopd world pretrain --out {folder}' makes one."
            )
    try:
        card: dict[str, Any] = json.loads(card_path.read_text(encoding="utf-8"))
        transformer, digest = card["transformer"], str(card["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise FlowOPDError(f"{card_path} is no card of a base of the world: {error}.") from None
    if transformer != TRANSFORMER:
        raise FlowOPDError(f"{card_path} describes a network of another shape than this version's.")
    if sha256(path) != digest:
        raise FlowOPDError(f"{path} is not the file that {CARD} describes: its SHA-256 differs.")
    return card


def load_base(folder: Path) -> WorldNetwork:
    """The network of a checked base, in evaluation mode and frozen."""
    read_card(folder)
    network = WorldNetwork()
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise FlowOPDError(f"{folder / WEIGHTS} cannot be loaded: {error}.") from None
    return network.eval().requires_grad_(False)


def skeleton() -> torch.nn.Module:
    """The transformer on the meta device."""
    with torch.device("meta"):
        return WorldNetwork().transformer
