"""A tiny random Mask2Former as transformers saves it, sure enough of itself to see something."""

from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from flowopd.rewards.geneval.names import NAMES
from tiny_sd3 import randomise

COCOS = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
SHARP = 4.0


def tiny_mask2former(labels: dict[int, str] | None = None) -> Mask2FormerForUniversalSegmentation:
    """A dozen queries; classes by COCO's own names."""
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    labels = labels or {i: COCOS.get(name, name) for i, name in enumerate(NAMES)}
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    randomise(model, seed=2)
    with torch.no_grad():
        model.class_predictor.weight.mul_(SHARP)
    return model.eval()


def save_mask2former(folder: Path, labels: dict[int, str] | None = None) -> Path:
    tiny_mask2former(labels).save_pretrained(folder)
    return folder
