"""CLIP by transformers: a picture's and a text's features, and how alike the two of a pair are.

B pairs, D features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.rewards.checkpoints import fill, read_folder
from flowopd.rewards.model_files import CONFIG

Prepare = Callable[[NDArray[np.uint8]], Tensor]
"""Pictures [B, H, W, 3] as the network takes them."""


class PictureEncoder:
    """CLIP's half for pictures."""

    def __init__(self, model: Any, prepare: Prepare) -> None:
        self._vision, self._projection = model.vision_model, model.visual_projection
        self._prepare = prepare

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Those of pictures [B, H, W, 3], of length 1: [B, D]."""
        return self.encode(self._prepare(images))

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Those of prepared pictures [B, 3, size, size]."""
        pixels = pixels.to(self._projection.weight.device)
        return _unit(self._projection(self._vision(pixel_values=pixels).pooler_output))


class TextEncoder:
    """CLIP's half for texts. `clean`: what is done to a text before it is cut into tokens."""

    def __init__(self, model: Any, tokenizer: Any, clean: Callable[[str], str] = str) -> None:
        self._text, self._projection = model.text_model, model.text_projection
        self._length = model.config.text_config.max_position_embeddings
        self._tokenizer, self._clean = tokenizer, clean

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Those of the texts, of length 1: [B, D]. Each different text is read once.

        Every text is padded to the full length, so that none depends on its neighbours.
        """
        different = list(dict.fromkeys(texts))
        tokens = self._tokenizer(
            [self._clean(text) for text in different],
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).input_ids.to(self._projection.weight.device)
        features = _unit(self._projection(self._text(input_ids=tokens).pooler_output))
        return features[[different.index(text) for text in texts]]


class Clip:
    """Both halves, and the scale by which likeness is multiplied."""

    def __init__(self, model: Any, pictures: PictureEncoder, texts: TextEncoder) -> None:
        self.pictures, self.texts = pictures, texts
        self.scale = float(model.logit_scale.exp())

    def cosines(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[float]:
        """How alike each picture and its own prompt are: -1 to 1."""
        pairs = self.pictures.features(images) * self.texts.features(prompts)
        return [float(cosine) for cosine in pairs.sum(-1)]


def load_model(folder: Path) -> Any:
    """The CLIPModel of a folder."""
    from transformers import CLIPConfig, CLIPModel

    try:
        config = CLIPConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FlowOPDError(f"{folder} holds no configuration of a CLIP: {error}") from error
    return fill(lambda: CLIPModel(config), read_folder(folder), folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, unless it is code that the folder brings along."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if _names_code(folder):
            raise FlowOPDError(
                f"The tokenizer in {folder} cannot be opened without code of its own (auto_map), "
                "which is not run; name a folder with a tokenizer that transformers knows."
            ) from error
        raise FlowOPDError(f"{folder} holds no tokenizer: {error}") from error


def _names_code(folder: Path) -> bool:
    files = [folder / name for name in (CONFIG, "tokenizer_config.json")]
    texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
    return any('"auto_map"' in text for text in texts)


def load_prepare(folder: Path) -> Prepare:
    """What a folder's preprocessor_config.json says is done to a picture, done by PIL."""
    processor_class = _processor_class()
    try:
        processor = processor_class.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FlowOPDError(f"{folder} holds no image processor: {error}") from error

    def prepare(images: NDArray[np.uint8]) -> Tensor:
        pixels: Tensor = processor(
            images=list(images), input_data_format="channels_last", return_tensors="pt"
        )["pixel_values"]
        return pixels

    return prepare


def _processor_class() -> Any:
    """CLIP's image processor that needs no torchvision, whichever transformers this is."""
    import transformers

    if hasattr(transformers, "CLIPImageProcessorPil"):
        return transformers.CLIPImageProcessorPil
    return transformers.CLIPImageProcessor


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)


def load_clip(folder: Path, tokenizer: Path, pictures: Path, device: torch.device) -> Clip:
    """CLIP as transformers saves it, on a device."""
    model = load_model(folder).to(device)
    texts = TextEncoder(model, load_tokenizer(tokenizer))
    return Clip(model, PictureEncoder(model, load_prepare(pictures)), texts)
