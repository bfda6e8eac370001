"""What both sides of the benchmark start from: prompts, random adapters, and the recipes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowopd.config import build
from flowopd.policy.adapter_saving import write_adapter
from flowopd.policy.lora import A_SUFFIX, LoraSettings
from flowopd.policy.lora_match import expected_shapes, linear_layers
from flowopd.policy.protocol import JOINT_ATTENTION
from flowopd.policy.sd3 import Precision
from flowopd.training.config import TrainConfig
from random_sd3 import SIZES, RandomSD3Config, SizeName
from released_style import FrozenIn

TASKS = ("compose", "text")
ROLES = ("student", *TASKS, "anchor")
RANK, ALPHA = 32, 64.0
GUIDANCE, NOISE_LEVEL = 4.5, 0.7
ANCHOR_WEIGHT, LEARNING_RATE = 0.02, 1e-4


@dataclass(frozen=True)
class Variant:
    """One of ours: what its recipe says beside what all of them say."""

    label: str
    algorithm: Mapping[str, Any]
    anchor_share: float = 1.0
    compiled: bool = False
    merged: bool = False

    @property
    def all_steps(self) -> bool:
        """Whether it does all the work: others have another gradient of the same expectation."""
        return "steps" not in self.algorithm

    @property
    def all_fused(self) -> bool:
        return self.all_steps and self.algorithm["path"] == "fused"

    @property
    def model(self) -> tuple[bool, bool]:
        """Variants that agree in this can share a model."""
        return self.compiled, self.merged


FUSED: Mapping[str, Any] = {"path": "fused"}
SPARSE: Mapping[str, Any] = {**FUSED, "steps": {"choose": "random", "count": 3}}
VARIANTS: Mapping[str, Variant] = {
    "b": Variant("stored path", {"path": "stored"}),
    "c": Variant("fused", FUSED),
    "d": Variant("fused, 3 steps, anchor on a third", SPARSE, anchor_share=1 / 3),
    "e": Variant("fused, compiled", FUSED, compiled=True),
    "f": Variant("fused, teachers merged", FUSED, merged=True),
    "g": Variant("fused, compiled, teachers merged", FUSED, compiled=True, merged=True),
}
BASELINE = "as the released code works"


@dataclass(frozen=True)
class Options:
    """What is measured, and where."""

    size: SizeName = "cpu"
    device: str = "cpu"
    dtype: Precision = "fp32"
    images: int = 6
    """Of an update."""
    micro: int = 3
    """Images that go through the network at once."""
    steps: int = 10
    checkpointing: bool = False
    frozen_in: FrozenIn = "tf32"
    """How the baseline's teachers and anchor compute."""
    seed: int = 0

    def model(self, *, compiled: bool = False) -> RandomSD3Config:
        return RandomSD3Config(
            size=self.size,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            compile=compiled,
            gradient_checkpointing=self.checkpointing,
        )


@dataclass(frozen=True)
class Material:
    """Files that recipes name."""

    folder: Path
    adapters: Mapping[str, Path] = field(default_factory=dict)
    prompts: Mapping[str, Path] = field(default_factory=dict)


def write_material(folder: Path, options: Options) -> Material:
    """Prompts of each task, and a random adapter for each role."""
    layers = linear_layers(options.model().skeleton())
    adapters, prompts = {}, {}
    for number, role in enumerate(ROLES):
        adapters[role] = folder / "adapters" / role
        adapters[role].parent.mkdir(parents=True, exist_ok=True)
        _write_random_adapter(adapters[role], layers, seed=number)
    for task in TASKS:
        prompts[task] = folder / f"{task}.jsonl"
        lines = [json.dumps({"prompt": f"{task} {n}", "task": task}) for n in range(8)]
        prompts[task].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Material(folder, adapters, prompts)


def recipe(options: Options, material: Material, variant: str) -> TrainConfig:
    """The training configuration of one of ours."""
    chosen = VARIANTS[variant]
    anchor = {
        "adapter": str(material.adapters["anchor"]),
        "weight": ANCHOR_WEIGHT,
        "share": chosen.anchor_share,
    }
    algorithm = {"name": "opd", "weighting": "kl", "anchor": anchor, **chosen.algorithm}
    side = SIZES[options.size].image
    data = {
        "model": options.model(compiled=chosen.compiled),
        "seed": options.seed,
        "tasks": {
            task: {"prompts": str(material.prompts[task]), "teacher": str(material.adapters[task])}
            for task in TASKS
        },
        "start": str(material.adapters["student"]),
        "algorithm": algorithm,
        "teachers": {"merged": chosen.merged},
        "rollout": {
            "steps": options.steps,
            "guidance": GUIDANCE,
            "sampler": "flow_sde",
            "noise_level": NOISE_LEVEL,
            "height": side,
            "width": side,
        },
        "batch": {
            "prompts": len(TASKS),
            "images_per_prompt": options.images // len(TASKS),
            "micro": options.micro,
        },
        "optimizer": {"lr": LEARNING_RATE, "clip_norm": 1.0},
        "updates": 1,
    }
    return build(TrainConfig, data)


def _write_random_adapter(
    folder: Path, layers: Mapping[str, tuple[int, int]], *, seed: int
) -> None:
    """Small beside the weights that it is added to, and not zero anywhere."""
    settings = LoraSettings(RANK, ALPHA, JOINT_ATTENTION)
    generator = torch.Generator().manual_seed(1000 + seed)
    tensors = {}
    for key, shape in expected_shapes(settings, layers).items():
        deviation = shape[1] ** -0.5 if key.endswith(A_SUFFIX) else 0.02
        tensors[key] = deviation * torch.randn(shape, generator=generator)
    write_adapter(folder, settings, tensors, {}, lora_prefix=None)
