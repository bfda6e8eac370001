"""CLIP checkpoints of open_clip's ViT-H-14, which HPSv2's are, as transformers' CLIPModel.

The two networks are the same but for names: open_clip keeps queries, keys and values in one
matrix, and multiplies by its projections from the right. Its activation is the exact GELU (not
OpenAI's quick one), its norms have an epsilon of 1e-5, and a text's features are those at its
token of the highest number, which is the end of the text.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch

from flowopd.rewards.checkpoints import Conversion, Tensors, fill, read_tensors
from flowopd.rewards.clip.network import Clip, PictureEncoder, TextEncoder, load_tokenizer
from flowopd.rewards.preparing import padded

HEADS = 16
"""Of ViT-H-14, in both halves. The shapes of a checkpoint say everything else."""
ACTIVATION, EPSILON = "gelu", 1e-5
STRAIGHT = str.maketrans(
    {**dict.fromkeys("ʼ‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"'), "\ufeff": None}
)
FANCY = re.compile("[\u3000\uff01-\uffef\ufb00-\ufb06]")


def load_open_clip(weights: Path, tokenizer: Path, device: torch.device) -> Clip:
    model = convert(read_tensors(weights), weights).to(device)
    size = model.config.vision_config.image_size
    pictures = PictureEncoder(model, lambda images: padded(images, size))
    return Clip(model, pictures, TextEncoder(model, load_tokenizer(tokenizer), clean))


def clean(text: str) -> str:
    """A text as open_clip's tokenizer begins with it: without HTML's escapes and fine typography.

    Its curly quotes become straight, its ligatures and wide letters plain ones; byte order marks
    go. (Texts in a wrong encoding are not mended, as open_clip's are.)
    """
    plain = unescape(unescape(text)).translate(STRAIGHT)
    return FANCY.sub(lambda found: normalize("NFKC", found[0]), plain).strip()


def convert(tensors: Tensors, where: Path) -> Any:
    """The CLIPModel with the weights of an open_clip checkpoint."""
    from transformers import CLIPModel

    conversion = Conversion(tensors, where)
    config = _config(conversion)
    _convert_pictures(conversion, config.vision_config.num_hidden_layers)
    _convert_texts(conversion, config.text_config.num_hidden_layers)
    conversion.move("logit_scale", "logit_scale")
    return fill(lambda: CLIPModel(config), conversion.done(), where)


def _config(conversion: Conversion) -> Any:
    from transformers import CLIPConfig

    shared = {
        "num_attention_heads": HEADS,
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
    }
    width, _, patch, _ = conversion.shape("visual.conv1.weight")
    positions = conversion.shape("visual.positional_embedding")[0]
    vocabulary, text_width = conversion.shape("token_embedding.weight")
    features = conversion.shape("visual.proj")[1]
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": conversion.count(r"visual\.transformer\.resblocks\.(\d+)\."),
        "patch_size": patch,
        "image_size": patch * round((positions - 1) ** 0.5),
        "projection_dim": features,
        **shared,
    }
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": conversion.count(r"transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": conversion.shape("positional_embedding")[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "projection_dim": features,
        **shared,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=features)


def _convert_pictures(conversion: Conversion, layers: int) -> None:
    ours = "vision_model"
    conversion.move("visual.class_embedding", f"{ours}.embeddings.class_embedding")
    conversion.move("visual.conv1.weight", f"{ours}.embeddings.patch_embedding.weight")
    conversion.move("visual.positional_embedding", f"{ours}.embeddings.position_embedding.weight")
    conversion.move_both("visual.ln_pre", f"{ours}.pre_layrnorm")
    conversion.move_both("visual.ln_post", f"{ours}.post_layernorm")
    conversion.move("visual.proj", "visual_projection.weight", transposed=True)
    _convert_blocks(conversion, "visual.transformer.resblocks", f"{ours}.encoder.layers", layers)


def _convert_texts(conversion: Conversion, layers: int) -> None:
    ours = "text_model"
    conversion.move("token_embedding.weight", f"{ours}.embeddings.token_embedding.weight")
    conversion.move("positional_embedding", f"{ours}.embeddings.position_embedding.weight")
    conversion.move_both("ln_final", f"{ours}.final_layer_norm")
    conversion.move("text_projection", "text_projection.weight", transposed=True)
    _convert_blocks(conversion, "transformer.resblocks", f"{ours}.encoder.layers", layers)


def _convert_blocks(conversion: Conversion, theirs: str, ours: str, layers: int) -> None:
    for i in range(layers):
        block, layer = f"{theirs}.{i}", f"{ours}.{i}"
        for part in ("weight", "bias"):
            names = [f"{layer}.self_attn.{which}_proj.{part}" for which in "qkv"]
            conversion.split(f"{block}.attn.in_proj_{part}", names)
        conversion.move_both(f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
        conversion.move_both(f"{block}.ln_1", f"{layer}.layer_norm1")
        conversion.move_both(f"{block}.ln_2", f"{layer}.layer_norm2")
        conversion.move_both(f"{block}.mlp.c_fc", f"{layer}.mlp.fc1")
        conversion.move_both(f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")
