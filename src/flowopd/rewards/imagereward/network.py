"""ImageReward's network: a text that has looked at a picture, rated by its first token.

B pairs, P patches of a picture and one, T tokens of a text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowopd.rewards.checkpoints import read_tensors
from flowopd.rewards.clip.network import load_tokenizer
from flowopd.rewards.imagereward.layout import Parts, convert
from flowopd.rewards.preparing import cropped

LENGTH = 35
"""Tokens of a prompt; the authors cut longer ones."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the ratings, over the authors' data."""


class Reader:
    """The three networks on a device, and the tokenizer."""

    def __init__(self, parts: Parts, tokenizer: Any, device: torch.device) -> None:
        self._pictures, self._texts, self._rating = (part.to(device) for part in parts)
        self._tokenizer, self._device = tokenizer, device

    @torch.inference_mode()
    def rewards(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[float]:
        """One for each picture [B, H, W, 3] and its own prompt."""
        pixels = cropped(images, self._pictures.config.image_size).to(self._device)
        patches_BPD = self._pictures(pixel_values=pixels).last_hidden_state
        read_BD = self._read(prompts, patches_BPD)[:, 0]
        ratings_B = (self._rating(read_BD) - MEAN) / STD
        return [float(rating) for rating in ratings_B]

    def _read(self, prompts: Sequence[str], patches_BPD: Tensor) -> Tensor:
        """The prompts' tokens after they have looked at their pictures: [B, T, D]."""
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        ).to(self._device)
        states: Tensor = self._texts(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches_BPD,
        ).last_hidden_state
        return states


def load_reader(weights: Path, tokenizer: Path, device: torch.device) -> Reader:
    return Reader(convert(read_tensors(weights), weights), load_tokenizer(tokenizer), device)
