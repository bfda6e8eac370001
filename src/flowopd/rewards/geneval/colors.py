"""An object's colour by CLIP, without training: the colour whose sentences are nearest to it.

N objects, C colours, D features.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowopd.rewards.clip.network import (
    PictureEncoder,
    TextEncoder,
    load_model,
    load_tokenizer,
)
from flowopd.rewards.geneval.names import COLORS
from flowopd.rewards.preparing import cropped

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)


class ClipColors:
    """A `ColorClassifier`. ``size``: of the pictures that the encoder takes."""

    def __init__(
        self, pictures: PictureEncoder, texts: TextEncoder, size: int, batch_size: int
    ) -> None:
        self._pictures, self._texts = pictures, texts
        self._size, self._batch_size = size, batch_size
        self._classes: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str | None]:
        found: list[str | None] = []
        for start in range(0, len(crops), self._batch_size):
            batch = slice(start, start + self._batch_size)
            pixels = [cropped(np.asarray(one)[None], self._size) for one in crops[batch]]
            features_ND = self._pictures.encode(torch.cat(pixels))
            for feature_D, name in zip(features_ND, names[batch], strict=True):
                found.append(nearest(feature_D, self._colors(name)))
        return found

    def _colors(self, name: str) -> Tensor:
        """What the colours look like on objects of a class, by their sentences: [C, D]."""
        if name not in self._classes:
            sentences = [
                template.format(color=color, name=name)
                for color in COLORS
                for template in TEMPLATES
            ]
            features = self._texts.features(sentences)
            self._classes[name] = averaged(features.unflatten(0, (len(COLORS), len(TEMPLATES))))
        return self._classes[name]


def averaged(features_CTD: Tensor) -> Tensor:
    """The mean of features of length 1 over the templates, again of length 1."""
    mean_CD = features_CTD.mean(1)
    return mean_CD / mean_CD.norm(dim=-1, keepdim=True)


def nearest(feature_D: Tensor, colors_CD: Tensor) -> str | None:
    """The colour with the largest cosine; None if that is no number."""
    cosines_C = colors_CD @ feature_D
    return COLORS[int(cosines_C.argmax())] if bool(torch.isfinite(cosines_C).all()) else None


def load_colors(folder: Path, tokenizer: Path, device: torch.device, batch_size: int) -> ClipColors:
    """CLIP as transformers saves it, as a classifier of colours."""
    model = load_model(folder).to(device)
    size = model.config.vision_config.image_size
    pictures = PictureEncoder(model, lambda images: cropped(images, size))
    return ClipColors(pictures, TextEncoder(model, load_tokenizer(tokenizer)), size, batch_size)
