"""Stable Diffusion 3's text encoders: two CLIPs and, optionally, T5."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.policy.protocol import PromptEmbeds, require_finite
from flowopd.policy.sd3_files import CLIPS, T5
from flowopd.policy.sd3_parts import load_part

CHUNK = 16
"""How many prompts go through the text encoders at a time."""


class SD3TextEncoders:
    """Prompts to embeddings, as StableDiffusion3Pipeline.encode_prompt makes them.

    The encoders are loaded when the first prompt is encoded: a run whose prompts are all in a
    text cache never loads T5's 9 GB.
    """

    def __init__(
        self,
        folder: Path,
        transformer: nn.Module,
        *,
        t5: bool,
        t5_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._folder = folder
        self._transformer = transformer
        self._t5 = t5
        self._t5_length = t5_length
        self._dtype = dtype
        self._device = device
        self._pipeline: Any = None
        self._dropped = False

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        if self._dropped:
            raise FlowOPDError(
                "The text encoders have been dropped; encode every prompt before, or read it "
                "from the text cache."
            )
        if not prompts:
            raise FlowOPDError("There is no prompt to encode; give at least one.")
        if self._pipeline is None:
            self._pipeline = self._load()
        starts = range(0, len(prompts), CHUNK)
        return PromptEmbeds.cat([self._encode(prompts[i : i + CHUNK]) for i in starts])

    def drop(self) -> None:
        """Free the encoders' memory; encoding is refused from here on."""
        self._pipeline = None
        self._dropped = True
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        sequence, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_length,
        )
        embeds = PromptEmbeds(sequence, pooled)
        require_finite(embeds, prompts)
        return embeds

    def _load(self) -> Any:
        from diffusers import StableDiffusion3Pipeline
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        kinds = dict.fromkeys(CLIPS, CLIPTextModelWithProjection)
        if self._t5:
            kinds |= dict.fromkeys(T5, T5EncoderModel)
        encoders = {
            part: load_part(kind, self._folder / part, {"dtype": self._dtype}).to(self._device)
            for part, kind in kinds.items()
        }
        absent = {} if self._t5 else {"text_encoder_3": None, "tokenizer_3": None}
        return StableDiffusion3Pipeline.from_pretrained(
            self._folder,
            transformer=self._transformer,
            vae=None,
            scheduler=None,
            local_files_only=True,
            **encoders,
            **absent,
        )
