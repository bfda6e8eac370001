"""Pictures as networks of the CLIP kind take them: small, and centred on the mean.

B pictures [B, H, W, 3] of bytes become [B, 3, size, size].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def cropped(images: NDArray[np.uint8], size: int) -> Tensor:
    """The shorter side resized by PIL (bicubic, in bytes), the middle cut out.

    What torchvision's `Resize` and `CenterCrop` do to a PIL picture, to their rounding.
    """
    import torch

    small = np.stack([_crop(_resize(Image.fromarray(image), size), size) for image in images])
    return _normalised(torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255)


def padded(images: NDArray[np.uint8], size: int) -> Tensor:
    """The longer side resized (bicubic, antialiased, in floats), black beside the rest.

    What torchvision's `resize` and `pad` do to a tensor: bright edges overshoot 1 a little.
    """
    import torch
    from torch.nn import functional

    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[-2:]
    scale = size / max(height, width)
    small = (round(height * scale), round(width * scale))
    if small != (height, width):
        pixels = functional.interpolate(
            pixels, small, mode="bicubic", align_corners=False, antialias=True
        )
    below, right = size - small[0], size - small[1]
    sides = (right // 2, right - right // 2, below // 2, below - below // 2)
    return _normalised(functional.pad(pixels, sides))


def _resize(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    shorter = min(width, height)
    target = (int(size * width / shorter), int(size * height / shorter))
    return picture.resize(target, Image.Resampling.BICUBIC)


def _crop(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    left, top = (round((side - size) / 2) for side in picture.size)
    return np.asarray(picture)[top : top + size, left : left + size]


def _normalised(pixels: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (MEAN, STD))
    return (pixels - mean) / std
