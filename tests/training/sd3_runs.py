"""Runs on a tiny SD3 pipeline: prompts, random teachers that are adapters or whole networks."""

import json
from pathlib import Path
from typing import Any

import torch

from flowopd.config import build
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.protocol import JOINT_ATTENTION
from flowopd.training.config import TrainConfig
from tiny_sd3 import tiny_transformer

PROMPTS = {
    "shapes": ["a red circle", "two green triangles", "a blue square", "three yellow stars"],
    "words": ["the word hello", "a sign", "the word on a sign", "hello hello"],
}


def lora(folder: Path, seed: int, *, rank: int = 4, strength: float = 0.15) -> Path:
    """A random adapter of the published kind for the tiny transformer."""
    bank = AdapterBank(tiny_transformer(0))
    bank.create("teacher", Role.STUDENT, rank=rank, alpha=2 * rank, targets=JOINT_ATTENTION)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in bank.trainable_parameters():
            parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
    bank.save("teacher", folder, metadata={}, lora_prefix="transformer")
    return folder


def network(folder: Path, seed: int, strength: float = 0.1) -> Path:
    """The tiny transformer with every weight moved a little."""
    transformer = tiny_transformer(0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in transformer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(strength * parameter.std().nan_to_num() * noise)
    transformer.save_pretrained(folder)
    return folder


def sd3_data(
    folder: Path, pipeline: Path, taught: dict[str, Path], **changes: Any
) -> dict[str, Any]:
    """The keys of a distillation with a task for each teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Any] = {}
    for task, teacher in taught.items():
        file = folder / f"{task}.jsonl"
        lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS[task]]
        file.write_text("\n".join(lines) + "\n")
        tasks[task] = {"prompts": str(file), "teacher": str(teacher)}
    data = {
        "model": {
            "family": "sd3",
            "path": str(pipeline),
            "dtype": "fp32",
            "device": "cpu",
            "t5_length": 16,
        },
        "seed": 1,
        "tasks": tasks,
        "algorithm": {"name": "opd", "weighting": "uniform"},
        "student": {"rank": 4, "alpha": 8},
        "rollout": {"steps": 4, "guidance": 1.0, "sampler": "flow_sde"},
        "batch": {"prompts": 4, "images_per_prompt": 1, "micro": 4},
        "optimizer": {"lr": 3e-3},
        "updates": 4,
        "checkpoint": {"every": 2},
    }
    return data | changes


def sd3_config(
    folder: Path, pipeline: Path, taught: dict[str, Path], **changes: Any
) -> TrainConfig:
    return build(TrainConfig, sd3_data(folder, pipeline, taught, **changes))


def forget_the_end(run: Path) -> bytes:
    """Take a finished run's result and last checkpoint away; what the result was."""
    import shutil

    file = next(file for file in (run / "adapter").glob("*.safetensors") if "lora" not in file.name)
    result = file.read_bytes()
    shutil.rmtree(run / "adapter")
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    return result
