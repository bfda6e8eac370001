"""ImageReward.pt as three networks: BLIP's ViT-L/16, its text encoder, and the rating.

The networks of transformers are the same as the authors' but for names. The epsilon of the
picture half's norms is 1e-6, that of the text half's 1e-12; the activation is the exact GELU.
"""

from pathlib import Path
from typing import Any, NamedTuple

from flowopd.rewards.checkpoints import Conversion, Tensors, fill, under
from flowopd.rewards.clip.aesthetic_head import LAYERS, load_rating

PICTURE_HEADS, TEXT_HEADS = 16, 12
"""Of ViT-L and of BERT base. The shapes of a checkpoint say everything else."""
PICTURE_EPSILON, TEXT_EPSILON = 1e-6, 1e-12
UNUSED = r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\..*position_ids"
"""BLIP's heads for comparing features, which ImageReward carries along, and counting buffers."""


class Parts(NamedTuple):
    pictures: Any
    """A BlipVisionModel."""
    texts: Any
    """A BlipTextModel that attends to pictures."""
    rating: Any


def convert(tensors: Tensors, where: Path) -> Parts:
    """The networks with the weights of the published checkpoint."""
    from transformers import BlipTextModel, BlipVisionModel

    conversion = Conversion(tensors, where)
    conversion.ignore(UNUSED)
    vision, text = _vision_config(conversion), _text_config(conversion)
    _convert_pictures(conversion, vision.num_hidden_layers)
    _convert_texts(conversion, text.num_hidden_layers)
    for i in LAYERS:
        conversion.move_both(f"mlp.layers.{i}", f"rating.layers.{i}")
    ours = conversion.done()
    return Parts(
        fill(lambda: BlipVisionModel(vision), under(ours, "pictures."), where),
        fill(
            lambda: BlipTextModel(text, add_pooling_layer=False),
            under(ours, "texts."),
            where,
        ),
        load_rating(under(ours, "rating."), where, text.hidden_size),
    )


def _vision_config(conversion: Conversion) -> Any:
    from transformers import BlipVisionConfig

    width, _, patch, _ = conversion.shape("blip.visual_encoder.patch_embed.proj.weight")
    positions = conversion.shape("blip.visual_encoder.pos_embed")[1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=conversion.count(r"blip\.visual_encoder\.blocks\.(\d+)\."),
        num_attention_heads=PICTURE_HEADS,
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=PICTURE_EPSILON,
    )


def _text_config(conversion: Conversion) -> Any:
    from transformers import BlipTextConfig

    embeddings = "blip.text_encoder.embeddings"
    vocabulary, width = conversion.shape(f"{embeddings}.word_embeddings.weight")
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=conversion.shape("blip.visual_encoder.pos_embed")[2],
        intermediate_size=4 * width,
        num_hidden_layers=conversion.count(r"blip\.text_encoder\.encoder\.layer\.(\d+)\."),
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=conversion.shape(f"{embeddings}.position_embeddings.weight")[0],
        hidden_act="gelu",
        layer_norm_eps=TEXT_EPSILON,
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
        is_decoder=True,  # what makes the layers attend to pictures, and no more than that
    )


def _convert_pictures(conversion: Conversion, layers: int) -> None:
    theirs, ours = "blip.visual_encoder", "pictures"
    conversion.move(f"{theirs}.cls_token", f"{ours}.embeddings.class_embedding")
    conversion.move(f"{theirs}.pos_embed", f"{ours}.embeddings.position_embedding")
    conversion.move_both(f"{theirs}.patch_embed.proj", f"{ours}.embeddings.patch_embedding")
    conversion.move_both(f"{theirs}.norm", f"{ours}.post_layernorm")
    for i in range(layers):
        block, layer = f"{theirs}.blocks.{i}", f"{ours}.encoder.layers.{i}"
        conversion.move_both(f"{block}.norm1", f"{layer}.layer_norm1")
        conversion.move_both(f"{block}.attn.qkv", f"{layer}.self_attn.qkv")
        conversion.move_both(f"{block}.attn.proj", f"{layer}.self_attn.projection")
        conversion.move_both(f"{block}.norm2", f"{layer}.layer_norm2")
        conversion.move_both(f"{block}.mlp.fc1", f"{layer}.mlp.fc1")
        conversion.move_both(f"{block}.mlp.fc2", f"{layer}.mlp.fc2")


def _convert_texts(conversion: Conversion, layers: int) -> None:
    theirs, ours = "blip.text_encoder", "texts"
    for name in ("word_embeddings.weight", "position_embeddings.weight"):
        conversion.move(f"{theirs}.embeddings.{name}", f"{ours}.embeddings.{name}")
    conversion.move_both(f"{theirs}.embeddings.LayerNorm", f"{ours}.embeddings.LayerNorm")
    attention = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    parts = (
        *(f"attention.{part}" for part in attention),
        *(f"crossattention.{part}" for part in attention),
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for i in range(layers):
        for part in parts:
            name = f"encoder.layer.{i}.{part}"
            conversion.move_both(f"{theirs}.{name}", f"{ours}.{name}")
