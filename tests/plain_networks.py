"""The published networks written out in plain arithmetic, on checkpoints in their own layouts.

One picture and one text at a time, in float64: what the scorers have to agree with.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)


class Weights:
    """A checkpoint, or the part of it under a prefix."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].double()

    def under(self, prefix: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{prefix}.")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        unit = centred / torch.sqrt(variance + epsilon)
        return unit * self[f"{name}.weight"] + self[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """Attention head by head: [T, D] from queries [T, D], keys and values [S, D]."""
    size = q.shape[-1] // heads
    found = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        found.append(torch.softmax(scores, -1) @ v[:, part])
    return torch.cat(found, -1)


def patches(pixels: Tensor, size: int) -> Tensor:
    """The patches of a picture [3, H, W], row by row: [P, 3 · size · size]."""
    rows = range(0, pixels.shape[1], size)
    columns = range(0, pixels.shape[2], size)
    cut = [pixels[:, y : y + size, x : x + size].flatten() for y in rows for x in columns]
    return torch.stack(cut).double()


def open_clip_picture(
    tensors: Mapping[str, Tensor], pixels: Tensor, *, heads=16, act=gelu, epsilon=1e-5
) -> Tensor:
    """The features of a prepared picture [3, H, W]."""
    weights = Weights(tensors).under("visual")
    conv = weights["conv1.weight"]
    seen = patches(pixels, conv.shape[-1]) @ conv.flatten(1).T
    x = torch.cat([weights["class_embedding"][None], seen]) + weights["positional_embedding"]
    x = weights.norm("ln_pre", x, epsilon)
    x = _open_clip_blocks(weights.under("transformer"), x, heads, act, epsilon, None)
    return weights.norm("ln_post", x[0], epsilon) @ weights["proj"]


def open_clip_text(
    tensors: Mapping[str, Tensor], tokens: list[int], *, heads=16, act=gelu, epsilon=1e-5
) -> Tensor:
    """The features of a text, at its token of the highest number."""
    weights = Weights(tensors)
    positions = weights["positional_embedding"][: len(tokens)]
    x = weights["token_embedding.weight"][tokens] + positions
    past = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    x = _open_clip_blocks(weights.under("transformer"), x, heads, act, epsilon, past)
    x = weights.norm("ln_final", x, epsilon)
    return x[max(range(len(tokens)), key=tokens.__getitem__)] @ weights["text_projection"]


def _open_clip_blocks(weights: Weights, x: Tensor, heads, act, epsilon, allowed) -> Tensor:
    layer = 0
    while f"{weights.prefix}resblocks.{layer}.ln_1.weight" in weights.tensors:
        block = weights.under(f"resblocks.{layer}")
        h = block.norm("ln_1", x, epsilon)
        qkv = h @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        h = attend(*qkv.chunk(3, -1), heads, allowed)
        x = x + block.linear("attn.out_proj", h)
        h = block.norm("ln_2", x, epsilon)
        x = x + block.linear("mlp.c_proj", act(block.linear("mlp.c_fc", h)))
        layer += 1
    return x


def blip_picture(
    tensors: Mapping[str, Tensor], pixels: Tensor, *, heads=16, epsilon=1e-6
) -> Tensor:
    """A prepared picture's patches, and one token before them: [P + 1, D]."""
    weights = Weights(tensors).under("blip.visual_encoder")
    conv = weights["patch_embed.proj.weight"]
    seen = patches(pixels, conv.shape[-1]) @ conv.flatten(1).T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"][0], seen]) + weights["pos_embed"][0]
    layer = 0
    while f"{weights.prefix}blocks.{layer}.norm1.weight" in tensors:
        block = weights.under(f"blocks.{layer}")
        qkv = block.linear("attn.qkv", block.norm("norm1", x, epsilon))
        x = x + block.linear("attn.proj", attend(*qkv.chunk(3, -1), heads))
        h = gelu(block.linear("mlp.fc1", block.norm("norm2", x, epsilon)))
        x = x + block.linear("mlp.fc2", h)
        layer += 1
    return weights.norm("norm", x, epsilon)


def blip_read(
    tensors: Mapping[str, Tensor], tokens: list[int], seen: Tensor, *, heads=12, epsilon=1e-12
) -> Tensor:
    """A text's tokens (without padding) after they attended to a picture's patches: [T, D]."""
    weights = Weights(tensors).under("blip.text_encoder")
    embeddings = weights.under("embeddings")
    x = embeddings["word_embeddings.weight"][tokens]
    x = x + embeddings["position_embeddings.weight"][: len(tokens)]
    x = embeddings.norm("LayerNorm", x, epsilon)
    layer = 0
    while f"{weights.prefix}encoder.layer.{layer}.output.dense.weight" in tensors:
        block = weights.under(f"encoder.layer.{layer}")
        for attention, source in (("attention", None), ("crossattention", seen)):
            part = block.under(attention)
            source = x if source is None else source
            q, k, v = (
                part.linear(f"self.{name}", y)
                for name, y in (("query", x), ("key", source), ("value", source))
            )
            h = part.linear("output.dense", attend(q, k, v, heads))
            x = part.norm("output.LayerNorm", x + h, epsilon)
        h = block.linear("output.dense", gelu(block.linear("intermediate.dense", x)))
        x = block.norm("output.LayerNorm", x + h, epsilon)
        layer += 1
    return x


def rate(tensors: Mapping[str, Tensor], features: Tensor, prefix: str = "layers") -> float:
    """Five linear maps in a row."""
    weights = Weights(tensors).under(prefix)
    for index in (0, 2, 4, 6, 7):
        features = weights.linear(str(index), features.double())
    return features.item()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))
