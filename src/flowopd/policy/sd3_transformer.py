"""SD3's transformer: finding it in a folder, loading it, and its velocity."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowopd.devices import pick_device
from flowopd.errors import FlowOPDError
from flowopd.flow.schedule import TRAINING_LEVELS
from flowopd.policy import sd3_files
from flowopd.policy.attention import pin_attention
from flowopd.policy.compiling import compile_blocks
from flowopd.policy.network import NetworkFiles, read_network
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3_parts import load_part
from flowopd.policy.weight_files import read_json

if TYPE_CHECKING:
    from flowopd.policy.sd3 import SD3Config

SAME = ("in_channels", "joint_attention_dim", "pooled_projection_dim")
"""What two networks must agree in for one to teach the other: latents, and embedded prompts."""
SAME_LATENTS = ("latent_channels", "scaling_factor", "shift_factor")


def look_at(source: Path, base: Path) -> NetworkFiles:
    """The transformer in a folder, if it can teach the one in the folder `base`."""
    files = read_network(source)
    config, own = (sd3_files.transformer_config(folder) for folder in (files.folder, base))
    _require_same(source, config, own, SAME)
    autoencoders = [folder.parent / "vae" / "config.json" for folder in (files.folder, base)]
    if all(path.is_file() for path in autoencoders):
        theirs, ours = (read_json(path) for path in autoencoders)
        _require_same(source, theirs, ours, SAME_LATENTS)
    return files


def _require_same(
    source: Path, config: Mapping[str, Any], own: Mapping[str, Any], keys: tuple[str, ...]
) -> None:
    for key in keys:
        if config.get(key) != own.get(key):
            raise FlowOPDError(
                f"The network {source} has {key} {config.get(key)}, and the base has "
                f"{own.get(key)}: they do not work on the same latents and embedded prompts, so "
                "one cannot teach the other."
            )


def load_transformer(
    config: "SD3Config", folder: Path, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A frozen transformer, run as the configuration says; `dtype` and `device` keep it."""
    from diffusers import SD3Transformer2DModel

    from flowopd.policy.sd3 import DTYPES

    transformer: Any = load_part(SD3Transformer2DModel, folder, sd3_files.load_in(dtype))
    transformer.to(device)
    if config.attention_backend is not None:
        computing = pick_device(config.device), DTYPES[config.dtype]
        pin_attention(transformer, config.attention_backend, *computing)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile:
        compile_blocks(transformer.transformer_blocks)
    return transformer


def sd3_velocity(
    transformer: nn.Module, x: Tensor, t: Tensor, prompts: PromptEmbeds, dtype: torch.dtype
) -> Tensor:
    """v(x_t, t, c) in float32, computed in a precision; noise levels stay in float32."""
    if x.ndim != 4 or t.shape != x.shape[:1] or len(prompts) != len(x):
        raise FlowOPDError(
            f"velocity takes latents [B,C,H,W], noise levels [B] and B prompts, and got "
            f"{list(x.shape)}, {list(t.shape)} and {len(prompts)} prompts."
        )
    device = next(transformer.parameters()).device
    prompts = prompts.to(device, dtype)
    v = transformer(
        hidden_states=x.to(device, dtype),
        timestep=t.to(device, torch.float32) * TRAINING_LEVELS,
        encoder_hidden_states=prompts.sequence,
        pooled_projections=prompts.pooled,
        return_dict=False,
    )[0]
    return v.float()
