"""Mask2Former by transformers, fed and read as the detector of GenEval's authors is.

Shapes: B pictures, Q queries, C classes; H, W of a picture, h, w of what the network sees of it.
The published preprocessor settings would shrink pictures to 384×384; GenEval's detector sees them
with a shorter side of 800.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.checkpoints import read_folder, refuse
from flowopd.rewards.geneval.detections import THRESHOLD, Detection, box_of
from flowopd.rewards.geneval.names import names_of
from flowopd.rewards.model_files import CONFIG

if TYPE_CHECKING:
    import torch

LONGEST = 1333 / 800  # of the shorter side
DIVISOR = 32
MOST = 100  # instances of a picture
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Instance(NamedTuple):
    label: int
    score: float
    mask: NDArray[np.bool_]


class Sizes(NamedTuple):
    """Heights and widths: of the network's input, of the picture within it, and as it came."""

    padded_hw: tuple[int, int]
    seen_hw: tuple[int, int]
    picture_hw: tuple[int, int]


class Mask2Former:
    """A `Detector`. ``model``: a Mask2FormerForUniversalSegmentation that knows COCO's classes."""

    def __init__(self, model: Any, name: str, short_side: int) -> None:
        self._model, self._short_side = model, short_side
        self._names = names_of({int(i): str(n) for i, n in model.config.id2label.items()}, name)

    def __call__(self, images: NDArray[np.uint8]) -> list[list[Detection] | None]:
        import torch

        with torch.inference_mode():
            pixels, size_hw = prepare(images, self._short_side, self._model.device)
            output = self._model(pixel_values=pixels)
            sizes = Sizes(_sides(pixels), size_hw, _sides(images[..., 0]))
            each = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
            found = [instances(classes_QC, masks_Qhw, sizes) for classes_QC, masks_Qhw in each]
        return [None if one is None else self._named(one) for one in found]

    def _named(self, found: list[Instance]) -> list[Detection]:
        return [
            Detection(self._names[one.label], one.score, box_of(one.mask), one.mask)
            for one in found
            if one.label in self._names
        ]


def load_mask2former(folder: Path, name: str, device: Any, short_side: int) -> Mask2Former:
    """The detector of a folder that transformers saved, in float32; what it lacks is refused.

    transformers puts the tensors in: the names that it saves are not those of its network.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    _check_kind(folder, name, Mask2FormerConfig.model_type)
    tensors = read_folder(folder)
    try:
        model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            None,
            config=Mask2FormerConfig.from_pretrained(folder),
            state_dict=tensors,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FlowOPDError(f"The detector {name} cannot be read: {reason}") from error
    refuse(folder, [*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])], [])
    return Mask2Former(model.float().to(device).requires_grad_(False).eval(), name, short_side)


def _check_kind(folder: Path, name: str, wanted: str) -> None:
    """Refuse the configuration of another network, or none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowOPDError(
            f"The detector {name} has a {CONFIG} that cannot be read: {error}. Download it again."
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != wanted:
        raise FlowOPDError(f"The detector {name} is a {kind!r}, and should be a {wanted!r}.")


def seen_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size at which a picture is seen: its shorter side as given, unless it is very long."""
    scale = min(short_side / min(height, width), LONGEST * short_side / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def prepare(
    images: NDArray[np.uint8], short_side: int, device: Any
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pictures [B, H, W, 3] as the network takes them, and their size before it was filled up."""
    import torch
    from torch.nn import functional

    size_hw = seen_size(*_sides(images[..., 0]), short_side)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
    pixels = _resized(pixels, size_hw)
    mean, std = (torch.tensor(three, device=device).view(3, 1, 1) for three in (MEAN, STD))
    pixels = (pixels.round() / 255 - mean) / std
    below, right = (-side % DIVISOR for side in size_hw)
    return functional.pad(pixels, (0, right, 0, below)), size_hw


def instances(
    class_logits_QC: torch.Tensor, mask_logits_Qhw: torch.Tensor, sizes: Sizes
) -> list[Instance] | None:
    """The instances of a picture whose score may count; None if the network gave no numbers.

    A score is a class's probability by the mean probability within the mask; it is no more than
    either, so that masks are made only where the class's is above the threshold.
    """
    import torch

    if not all(bool(torch.isfinite(one).all()) for one in (class_logits_QC, mask_logits_Qhw)):
        return None
    probabilities_QC = class_logits_QC.softmax(-1)[:, :-1]
    classes = probabilities_QC.shape[1]
    best = probabilities_QC.flatten().topk(min(MOST, probabilities_QC.numel()))
    sure = best.values > THRESHOLD
    chances, chosen = best.values[sure], best.indices[sure]
    if not len(chosen):
        return []
    logits = mask_logits_Qhw[chosen // classes][:, None].float()
    logits = _resized(logits, sizes.padded_hw)[..., : sizes.seen_hw[0], : sizes.seen_hw[1]]
    logits = _resized(logits, sizes.picture_hw)[:, 0]
    masks = logits > 0
    within = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores = chances * within
    counts = scores > THRESHOLD
    labels = (chosen % classes)[counts].tolist()
    seen = masks[counts].cpu().numpy()
    return [Instance(*one) for one in zip(labels, scores[counts].tolist(), seen, strict=True)]


def _resized(pictures: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    from torch.nn import functional

    return functional.interpolate(pictures, size_hw, mode="bilinear", align_corners=False)


def _sides(pictures: Any) -> tuple[int, int]:
    height, width = pictures.shape[-2:]
    return int(height), int(width)
