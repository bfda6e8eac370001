"""Small runs on the fake model: one linear layer, adapters that a test makes, rewards that read
brightness."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fakes import FakeConfig
from flowopd.config import build
from flowopd.policy.bank import AdapterBank, Role
from flowopd.tasks.batches import Sample
from flowopd.training.config import TrainConfig
from flowopd.training.method import Batch, Context, Method
from flowopd.training.methods import METHODS
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare
from flowopd.training.trainer import Trainer, make_batches


def make_teacher(folder: Path, seed: int, rank: int = 2) -> Path:
    """An adapter of the fake model with random weights."""
    model = FakeConfig().open()
    bank = AdapterBank(model.transformer, base_name="fake", fingerprint=model.fingerprint)
    bank.create("teacher", Role.STUDENT, rank=rank, alpha=rank, targets=["to_q"], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in bank.trainable_parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    bank.save("teacher", folder, metadata={}, lora_prefix=None)
    return folder


def write_prompts(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for task in ("shapes", "words"):
        files[task] = folder / f"{task}.jsonl"
        lines = [{"prompt": f"{task} {'e' * n}", "task": task} for n in range(7)]
        files[task].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


ALGORITHMS: dict[str, dict[str, Any]] = {
    "opd": {"name": "opd", "weighting": "kl"},
    "stored": {"name": "opd", "path": "stored"},
    "pg": {"name": "opd", "loss": "policy_gradient"},
    "mixed": {"name": "opd", "loss": "mixed"},
    "grpo": {"name": "grpo", "kl": 0.1, "clip": 0.2},
    "nft": {"name": "nft"},
    "sft": {"name": "sft", "images_per_task": 10},
}


def data_for(folder: Path, algorithm: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The keys of a run with two tasks; teachers where the algorithm learns from them."""
    prompts = write_prompts(folder / "prompts")
    tasks: dict[str, Any] = {
        task: {"prompts": str(path), "reward": {"level": 1}} for task, path in prompts.items()
    }
    if algorithm["name"] in ("opd", "sft"):
        for seed, task in enumerate(tasks, 1):
            tasks[task]["teacher"] = str(make_teacher(folder / f"teacher-{task}", seed))
    data = {
        "model": "fake",
        "seed": 3,
        "scorers": ["bright"],
        "tasks": tasks,
        "algorithm": dict(algorithm),
        "student": {"rank": 2, "alpha": 4},
        "rollout": {"steps": 4, "guidance": 1.0, "sampler": "flow_sde"},
        "batch": {"prompts": 4, "images_per_prompt": 2, "micro": 3},
        "optimizer": {"lr": 0.01},
        "updates": 6,
        "checkpoint": {"every": 2},
    }
    return data | changes


def config_for(folder: Path, algorithm: Mapping[str, Any], **changes: Any) -> TrainConfig:
    return build(TrainConfig, data_for(folder, algorithm, **changes))


@dataclass
class Made:
    """A method with all that it works with, and its next batch."""

    context: Context
    method: Method
    samples: list[Sample]

    def batch(self, samples: list[Sample] | None = None) -> Batch:
        return self.method.batch(self.samples if samples is None else samples)

    def gradients(self, samples: list[Sample] | None = None) -> list[Tensor]:
        """The student's gradient of every update that a batch serves (without stepping)."""
        found = []
        parameters = [p for _, p in self.context.bank.trainable_parameters()]
        for pieces in self.method.updates(self.batch(samples)):
            for parameter in parameters:
                parameter.grad = None
            for piece in pieces:
                piece.loss.backward()
            found.append(torch.cat([p.grad.reshape(-1) for p in parameters]))
        return found

    @property
    def gradient(self) -> Tensor:
        return self.gradients()[0]


def make(folder: Path, config: TrainConfig) -> Made:
    context = make_context(prepare(config), config.model.open(), Ranks(), folder)
    move_student(context.bank)
    method = METHODS[config.algorithm.name](context)
    if config.algorithm.name == "nft":
        move_student(context.bank)  # away from the old student too
    return Made(context, method, make_batches(config, method).draw())


def move_student(bank: AdapterBank) -> None:
    """Away from the start, where B = 0 and A has no gradient."""
    assert bank.student is not None
    generator = torch.Generator().manual_seed(99)
    assert bank.adapters[bank.student].role is Role.STUDENT
    with torch.no_grad():
        for _, parameter in bank.trainable_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


__all__ = ["ALGORITHMS", "Made", "Trainer", "config_for", "data_for", "make", "make_teacher"]
