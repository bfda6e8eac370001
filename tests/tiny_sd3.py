"""Tiny random pipelines of Stable Diffusion 3.5's shape, in the folder format of diffusers.

Everything a real SD3.5-Medium folder has is there: two CLIPs with projections, T5 (or none), an
autoencoder with 16 latent channels and a shift, a transformer with RMS-normed queries and keys and
a second attention in its first blocks. Every weight is random, those that start at zero too, so
that no output is trivially zero and every input matters.
"""

import json
import math
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from sentencepiece import SentencePieceTrainer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIP_WIDTHS = (16, 24)
JOINT_DIM = 48
POOLED_DIM = sum(CLIP_WIDTHS)
LATENT_SIZE = 8
IMAGE_SIZE = 64
CORPUS = (
    "a photo of a red circle above a blue square",
    "two green triangles and three yellow stars",
    "the word hello written on a sign",
    "0 1 2 3 4 5 6 7 8 9 ! ? . , ' - : quick brown fox jumps over the lazy dog",
)


def tiny_transformer(seed: int = 0) -> SD3Transformer2DModel:
    """Three blocks of width 32; the first two have the second attention, as SD3.5-M's first 13."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT_DIM,
        caption_projection_dim=32,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    return randomise(transformer, seed).eval()


def save_tiny_pipeline(folder: str | Path, *, t5: bool = True, seed: int = 0) -> Path:
    """A folder that `StableDiffusion3Pipeline.from_pretrained` opens, about 1 MB."""
    with tempfile.TemporaryDirectory() as scratch:
        clip_l = _clip_tokenizer(Path(scratch) / "clip_l", pad="<|endoftext|>")
        clip_g = _clip_tokenizer(Path(scratch) / "clip_g", pad="!")
        pipeline = StableDiffusion3Pipeline(
            transformer=tiny_transformer(seed),
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
            vae=_tiny_vae(seed + 1),
            text_encoder=_tiny_clip(clip_l, CLIP_WIDTHS[0], seed + 2),
            tokenizer=clip_l,
            text_encoder_2=_tiny_clip(clip_g, CLIP_WIDTHS[1], seed + 3),
            tokenizer_2=clip_g,
            text_encoder_3=_tiny_t5(seed + 4) if t5 else None,
            tokenizer_3=_t5_tokenizer(Path(scratch) / "t5") if t5 else None,
        )
        pipeline.save_pretrained(folder)
    return Path(folder)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of variance 1/fan_in, norms about one, biases about zero: all of them random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.1 * noise)
    return module


def _tiny_vae(seed: int) -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )
    return randomise(vae, seed).eval()


def _tiny_clip(tokenizer: CLIPTokenizer, width: int, seed: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return randomise(CLIPTextModelWithProjection(config), seed).eval()


def _tiny_t5(seed: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=256,
        d_model=JOINT_DIM,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return randomise(T5EncoderModel(config), seed).eval()


def _clip_tokenizer(folder: Path, *, pad: str) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over printable ASCII, with no merges but a few."""
    folder.mkdir(parents=True)
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("r", "e"), ("re", "d</w>"), ("o", "f</w>"), ("a", "n"), ("an", "d</w>")]
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)


def _t5_tokenizer(folder: Path) -> T5TokenizerFast:
    folder.mkdir(parents=True)
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return T5TokenizerFast.from_pretrained(folder, model_max_length=512)
