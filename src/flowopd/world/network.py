"""The world's network: an SD3 transformer over 4-by-4 pixel patches, and its text encoder."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from flowopd.flow.schedule import TRAINING_LEVELS
from flowopd.world.palette import CANVAS
from flowopd.world.text_encoder import WIDTH, TextEncoder

PATCH = 4
LATENT = (3 * PATCH**2, CANVAS // PATCH, CANVAS // PATCH)
TRANSFORMER: dict[str, Any] = {
    "sample_size": LATENT[1],
    "patch_size": 1,
    "in_channels": LATENT[0],
    "out_channels": LATENT[0],
    "num_layers": 4,
    "attention_head_dim": 24,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 96,
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": LATENT[1],
    "qk_norm": "rms_norm",
}


def build_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(**TRANSFORMER)


def to_latents(images: Tensor) -> Tensor:
    """Images [B, 3, 32, 32] in [0, 1] to latents [B, 48, 8, 8] in [-1, 1]."""
    return nn.functional.pixel_unshuffle(images * 2 - 1, PATCH)


def to_images(latents: Tensor) -> Tensor:
    """The inverse of `to_latents`, clipped to [0, 1]."""
    return (nn.functional.pixel_shuffle(latents, PATCH) / 2 + 0.5).clamp(0, 1)


def run_transformer(
    transformer: nn.Module, x: Tensor, t: Tensor, sequence: Tensor, pooled: Tensor
) -> Tensor:
    """The velocity at x [B, 48, 8, 8], t [B] in [0, 1], for embedded prompts."""
    velocity: Tensor = transformer(
        hidden_states=x,
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
        timestep=t * TRAINING_LEVELS,
        return_dict=False,
    )[0]
    return velocity


class WorldNetwork(nn.Module):
    """What pre-training trains: both parts in one module, so that they have one state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = TextEncoder()

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The velocity at x [B, 48, 8, 8], t [B] in [0, 1], for token ids [B, 8]."""
        sequence, pooled = self.text_encoder(ids)
        return run_transformer(self.transformer, x, t, sequence, pooled)


def fresh_network(seed: int) -> WorldNetwork:
    """A network with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldNetwork()
