"""Tiny random networks in the layouts in which CLIP, open_clip, ImageReward and LAION publish.

Embeddings are small beside everything else, so that the epsilon of the norms after them matters.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

SIZE, PATCH = 32, 8
WIDTH, TEXT_WIDTH, FEATURES = 32, 48, 24
LAYERS = 2
SMALL = 0.02
EMBEDS = ("embed", "cls_token", "conv1")
POSITIONS = (SIZE // PATCH) ** 2 + 1
CLIP_LENGTH, BERT_LENGTH = 77, 40
RATED = (1024, 128, 64, 16, 1)

CLIP_TOKENS = [chr(code) for code in range(ord("!"), ord("~") + 1)]
MERGES = [("r", "e"), ("re", "d</w>"), ("o", "f</w>"), ("a", "n"), ("an", "d</w>")]
VOCABULARY = [
    *CLIP_TOKENS,
    *(token + "</w>" for token in CLIP_TOKENS),
    *("".join(pair) for pair in MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
BERT_VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "square", "dog", "photo", "very"),
    *LETTERS,
    *("##" + letter for letter in LETTERS),
]
PREPARED = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": SIZE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights of variance 1/fan_in, norms about one, biases about zero, embeddings small."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if any(part in name for part in EMBEDS) and "Norm" not in name:
            tensors[name] = SMALL * noise
        elif len(shape) >= 2:
            tensors[name] = noise / noise[0].numel() ** 0.5
        elif "bias" in name or not shape:
            tensors[name] = 0.1 * noise
        else:
            tensors[name] = 1 + 0.1 * noise
    return tensors


def save_clip(folder: Path, seed: int = 0) -> Path:
    """CLIP as on the hub: configuration, weights, tokenizer, preparation of pictures."""
    shared = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "projection_dim": FEATURES}
    end = len(VOCABULARY) - 1
    config = CLIPConfig(
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "max_position_embeddings": CLIP_LENGTH,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
            **shared,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "image_size": SIZE,
            "patch_size": PATCH,
            **shared,
        },
        projection_dim=FEATURES,
    )
    model = CLIPModel(config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = random_tensors(shapes, seed) | {"logit_scale": torch.tensor(4.6)}
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_clip_tokenizer(folder)
    save_json(folder / "preprocessor_config.json", PREPARED)
    return folder


def save_clip_tokenizer(folder: Path) -> Path:
    """CLIP's byte-pair tokenizer over printable ASCII, with no merges but a few."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "vocab.json", {token: index for index, token in enumerate(VOCABULARY)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    tokens = {f"{kind}_token": name for kind, name in names.items()}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_LENGTH}
    save_json(folder / "tokenizer_config.json", {**settings, **tokens})
    return folder


def save_bert_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    save_json(folder / "tokenizer_config.json", settings)
    return folder


def open_clip_tensors(seed: int = 0) -> dict[str, Tensor]:
    """open_clip's names. 16 heads in both halves, as its ViT-H-14 has."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CLIP_LENGTH, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, FEATURES),
        "logit_scale": (),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (POSITIONS, WIDTH),
        "visual.proj": (WIDTH, FEATURES),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **both("visual.ln_pre", (WIDTH,)),
        **both("visual.ln_post", (WIDTH,)),
        "token_embedding.weight": (len(VOCABULARY), TEXT_WIDTH),
        **both("ln_final", (TEXT_WIDTH,)),
    }
    for prefix, width in (("visual.transformer", WIDTH), ("transformer", TEXT_WIDTH)):
        for layer in range(LAYERS):
            block = f"{prefix}.resblocks.{layer}"
            shapes |= {
                **both(f"{block}.ln_1", (width,)),
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                **both(f"{block}.attn.out_proj", (width, width)),
                **both(f"{block}.ln_2", (width,)),
                **both(f"{block}.mlp.c_fc", (4 * width, width)),
                **both(f"{block}.mlp.c_proj", (width, 4 * width)),
            }
    return random_tensors(shapes, seed)


def image_reward_tensors(seed: int = 0) -> dict[str, Tensor]:
    """ImageReward.pt's names. 16 and 12 heads, as BLIP's ViT-L and BERT base have."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.cls_token": (1, 1, WIDTH),
        f"{vision}.pos_embed": (1, POSITIONS, WIDTH),
        **both(f"{vision}.patch_embed.proj", (WIDTH, 3, PATCH, PATCH)),
        **both(f"{vision}.norm", (WIDTH,)),
        f"{text}.embeddings.word_embeddings.weight": (len(BERT_VOCABULARY) + 2, TEXT_WIDTH),
        f"{text}.embeddings.position_embeddings.weight": (BERT_LENGTH, TEXT_WIDTH),
        **both(f"{text}.embeddings.LayerNorm", (TEXT_WIDTH,)),
        **both("blip.vision_proj", (256, WIDTH)),
        **both("blip.text_proj", (256, TEXT_WIDTH)),
        **rating_shapes("mlp.layers", TEXT_WIDTH),
    }
    for layer in range(LAYERS):
        block = f"{vision}.blocks.{layer}"
        shapes |= {
            **both(f"{block}.norm1", (WIDTH,)),
            **both(f"{block}.attn.qkv", (3 * WIDTH, WIDTH)),
            **both(f"{block}.attn.proj", (WIDTH, WIDTH)),
            **both(f"{block}.norm2", (WIDTH,)),
            **both(f"{block}.mlp.fc1", (4 * WIDTH, WIDTH)),
            **both(f"{block}.mlp.fc2", (WIDTH, 4 * WIDTH)),
        }
        block = f"{text}.encoder.layer.{layer}"
        for attention, source in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            shapes |= {
                **both(f"{block}.{attention}.self.query", (TEXT_WIDTH, TEXT_WIDTH)),
                **both(f"{block}.{attention}.self.key", (TEXT_WIDTH, source)),
                **both(f"{block}.{attention}.self.value", (TEXT_WIDTH, source)),
                **both(f"{block}.{attention}.output.dense", (TEXT_WIDTH, TEXT_WIDTH)),
                **both(f"{block}.{attention}.output.LayerNorm", (TEXT_WIDTH,)),
            }
        shapes |= {
            **both(f"{block}.intermediate.dense", (4 * TEXT_WIDTH, TEXT_WIDTH)),
            **both(f"{block}.output.dense", (TEXT_WIDTH, 4 * TEXT_WIDTH)),
            **both(f"{block}.output.LayerNorm", (TEXT_WIDTH,)),
        }
    tensors = random_tensors(shapes, seed)
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(BERT_LENGTH)[None]
    return tensors


def rating_tensors(width: int, seed: int = 0) -> dict[str, Tensor]:
    """LAION's names."""
    return random_tensors(rating_shapes("layers", width), seed)


def rating_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    sizes = zip((width, *RATED), RATED, strict=False)
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inside, outside) in zip((0, 2, 4, 6, 7), sizes, strict=True):
        shapes |= both(f"{prefix}.{index}", (outside, inside))
    return shapes


def both(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A weight's shape and its bias's."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def save_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
