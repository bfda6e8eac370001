"""Stable Diffusion 3.5 with random weights: nothing is read from a folder or a hub.

The weights are drawn on the device and in the precision that are asked for, and prompts get random
embeddings in place of text encoders, so that the true size can be measured where no pipeline is.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn

from flowopd.policy.compiling import compile_blocks
from flowopd.policy.protocol import ModelConfig, PromptEmbeds
from flowopd.policy.sd3 import DTYPES, Precision, SD3Model, pick_device

SizeName = Literal["smallest", "cpu", "sd35m"]


@dataclass(frozen=True)
class Size:
    """A transformer and an autoencoder of SD3.5-Medium's make."""

    layers: int
    heads: int
    head_dim: int
    dual_layers: int
    joint_dim: int
    pooled_dim: int
    sample_size: int
    positions: int
    clip_tokens: int
    t5_tokens: int
    vae_channels: tuple[int, int, int, int]
    vae_layers: int
    vae_groups: int
    image: int
    """The side that the benchmarks draw, in pixels."""

    @property
    def tokens(self) -> int:
        """Of a prompt."""
        return self.clip_tokens + self.t5_tokens


SIZES: Mapping[SizeName, Size] = {
    "smallest": Size(2, 2, 16, 1, 24, 20, 8, 12, 3, 4, (4, 4, 8, 8), 1, 4, 64),
    # Image tokens to prompt tokens, and decoding to a guided forward, are about as at true size.
    "cpu": Size(4, 4, 64, 2, 640, 320, 16, 24, 5, 8, (8, 16, 32, 32), 2, 8, 128),
    "sd35m": Size(24, 24, 64, 13, 4096, 2048, 128, 384, 77, 128, (128, 256, 512, 512), 2, 32, 512),
}


class RandomSD3Config(ModelConfig):
    """Which size, and how it is run."""

    family: Literal["random-sd3"] = "random-sd3"
    size: SizeName = "cpu"
    dtype: Precision = "fp32"
    vae_dtype: Precision = "fp32"
    device: str = "auto"
    seed: int = 0
    compile: bool = False
    gradient_checkpointing: bool = False

    def check(self) -> None:
        pick_device(self.device)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.size} {self.seed} {self.dtype}".encode()).hexdigest()

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return make_transformer(SIZES[self.size])

    def open(self) -> "RandomSD3":
        return RandomSD3(self)


class RandomSD3(SD3Model):
    """A VelocityModel that computes as SD3Model does, whose weights and embeddings are random."""

    def __init__(self, config: RandomSD3Config) -> None:
        self.size = SIZES[config.size]
        self.name = f"random SD3 ({config.size})"
        self.shift = 3.0
        self.fingerprint = config.fingerprint()
        self.settings: Mapping[str, Any] = {"t5_length": self.size.t5_tokens}
        self._dtype = DTYPES[config.dtype]
        self._device = pick_device(config.device)
        self.embeddings = RandomEmbeddings(self.size, self._device, self._dtype)
        with _drawn(self._device, config.seed):
            self.transformer: nn.Module = _placed(
                lambda: make_transformer(self.size), self._device, self._dtype
            )
            self.vae = _placed(lambda: make_vae(self.size), self._device, DTYPES[config.vae_dtype])
        network: Any = self.transformer
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if config.compile:
            compile_blocks(network.transformer_blocks)

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        return self.embeddings(prompts)

    def drop_text_encoders(self) -> None:
        pass


class RandomEmbeddings:
    """Random numbers that belong to a prompt, drawn when it first comes, and kept."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self._size, self._device, self._dtype = size, device, dtype
        self._known: dict[str, PromptEmbeds] = {}

    def __call__(self, prompts: Sequence[str]) -> PromptEmbeds:
        for prompt in prompts:
            if prompt not in self._known:
                self._known[prompt] = self._draw(prompt)
        return PromptEmbeds.cat([self._known[prompt] for prompt in prompts])

    def _draw(self, prompt: str) -> PromptEmbeds:
        digest = hashlib.sha256(prompt.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        sequence = torch.randn(1, self._size.tokens, self._size.joint_dim, generator=generator)
        pooled = torch.randn(1, self._size.pooled_dim, generator=generator)
        return PromptEmbeds(sequence, pooled).to(self._device, self._dtype)


def make_transformer(size: Size) -> Any:
    """As SD3.5-Medium is configured, at a size; the weights are torch's initial ones."""
    return SD3Transformer2DModel(
        sample_size=size.sample_size,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=size.joint_dim,
        caption_projection_dim=size.heads * size.head_dim,
        pooled_projection_dim=size.pooled_dim,
        pos_embed_max_size=size.positions,
        dual_attention_layers=tuple(range(size.dual_layers)),
        qk_norm="rms_norm",
    )


def make_vae(size: Size) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.vae_channels,
        layers_per_block=size.vae_layers,
        latent_channels=16,
        norm_num_groups=size.vae_groups,
        sample_size=size.image,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def _placed(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen module whose weights were drawn on the device, in the precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            module = make()
    finally:
        torch.set_default_dtype(before)
    # Buffers may have another precision. (diffusers' own `to` would warn of what does not matter.)
    return nn.Module.to(module, device, dtype).requires_grad_(False).eval()


@contextlib.contextmanager
def _drawn(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers inside follow from the seed; those outside are as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
