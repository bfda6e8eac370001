"""The rating of CLIP's features: five linear maps in a row, with nothing between them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.rewards.checkpoints import Tensors, fill, read_tensors
from flowopd.rewards.clip.network import PictureEncoder, load_model, load_prepare

LAYERS = (0, 2, 4, 6, 7)
"""Where the linear maps are in the published list of layers; dropouts are between the first."""
WIDTHS = (1024, 128, 64, 16, 1)


class Rating(nn.Module):
    """`width → 1024 → 128 → 64 → 16 → 1`, under the published names (``layers.0.weight``, ...)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        linear = (nn.Linear(*sizes) for sizes in pairwise((width, *WIDTHS)))
        self.layers = nn.ModuleDict(
            {str(i): layer for i, layer in zip(LAYERS, linear, strict=True)}
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, width] to [B]."""
        for layer in self.layers.values():
            features = layer(features)
        return features.squeeze(-1)


class Aesthetic:
    """CLIP's features of a picture, rated."""

    def __init__(self, pictures: PictureEncoder, head: Rating) -> None:
        self._pictures, self._head = pictures, head

    @torch.inference_mode()
    def ratings(self, images: NDArray[np.uint8]) -> list[float]:
        return [float(rating) for rating in self._head(self._pictures.features(images))]


def load_aesthetic(folder: Path, pictures: Path, head: Path, device: torch.device) -> Aesthetic:
    model = load_model(folder)
    width = model.config.projection_dim
    del model.text_model, model.text_projection
    rating = load_rating(read_tensors(head), head, width)
    encoder = PictureEncoder(model.to(device), load_prepare(pictures))
    return Aesthetic(encoder, rating.to(device))


def load_rating(tensors: Tensors, where: Path, width: int) -> Any:
    """The rating of features of this width, from its published tensors."""
    first = tensors.get(f"layers.{LAYERS[0]}.weight")
    if first is not None and first.ndim == 2 and first.shape[1] != width:
        raise FlowOPDError(
            f"The head in {where} rates features of {first.shape[1]} numbers, and the network "
            f"before it gives {width}; a head needs the network that it was made for."
        )
    return fill(lambda: Rating(width), tensors, where)
