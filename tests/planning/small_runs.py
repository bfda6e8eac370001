"""Trainings of a tiny pipeline: as they are planned, and as they are."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from flowopd.config import build
from flowopd.planning.attention import fused_attention
from flowopd.planning.experts import Experts
from flowopd.planning.imagined import ImaginedRanks, ImaginedReward, ImaginedSFT
from flowopd.planning.memory import LiveMemory
from flowopd.planning.needs import Rehearsed
from flowopd.planning.outline import open_outline, outlined
from flowopd.planning.prompt_files import Assumed
from flowopd.planning.rehearsal import Rehearsal
from flowopd.policy.adapter_saving import write_adapter
from flowopd.policy.lora import LoraSettings
from flowopd.policy.lora_match import expected_shapes, linear_layers
from flowopd.policy.protocol import JOINT_ATTENTION
from flowopd.policy.sd3 import SD3Config
from flowopd.tasks.prompt_set import read_set
from flowopd.training.config import TrainConfig
from flowopd.training.methods import METHODS
from flowopd.training.run import TrainPlan, adapter_paths, make_context
from flowopd.training.trainer import Trainer

TASKS = ("shapes", "words")
UPDATES = 2


def write_adapters(pipeline: Path, folder: Path, rank: int = 4) -> dict[str, Path]:
    """A random LoRA for each task."""
    layers = linear_layers(SD3Config(path=str(pipeline), device="cpu").skeleton())
    settings = LoraSettings(rank, 2.0 * rank, JOINT_ATTENTION)
    for number, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(number)
        tensors = {
            key: torch.randn(shape, generator=generator)
            for key, shape in expected_shapes(settings, layers).items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(folder / task, settings, tensors, {}, lora_prefix=None)
    return {task: folder / task for task in TASKS}


def data_for(pipeline: Path, folder: Path, algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a training with two tasks; teachers where the algorithm learns from them."""
    taught = algorithm["name"] in ("opd", "sft")
    teachers = write_adapters(pipeline, folder / "teachers") if taught else {}
    tasks: dict[str, Any] = {}
    for task in TASKS:
        (folder / f"{task}.txt").write_text("".join(f"{task} {n}\n" for n in range(9)))
        tasks[task] = {"prompts": str(folder / f"{task}.txt")}
        tasks[task] |= {"teacher": str(teachers[task])} if taught else {"reward": {"level": 1}}
    return {
        "model": {
            "family": "sd3",
            "path": str(pipeline),
            "dtype": "fp32",
            "device": "cpu",
            "t5_length": 16,
        },
        "tasks": tasks,
        "algorithm": dict(algorithm),
        "student": {"rank": 4},
        "rollout": {"steps": 2, "guidance": 1.0 if algorithm["name"] == "nft" else 4.5},
        "batch": {"prompts": 2, "images_per_prompt": 2, "micro": 2},
        "updates": 8,
    }


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with others in place of them, `key.sub` going down."""
    result = deepcopy(dict(data))
    for key, value in changes.items():
        *way, last = key.split(".")
        place = result
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    if result["student"].get("full"):
        result["student"] = {"full": True}
    return result


def config_of(data: Mapping[str, Any]) -> TrainConfig:
    return build(TrainConfig, dict(data))


def rehearse(config: TrainConfig, devices: int = 1, probed: int = 0) -> Rehearsed:
    """As it is planned."""
    model = outlined(config.model)
    config = config.model_copy(update={"model": model})
    experts = Experts(model, {}, Assumed())
    outline = open_outline(model)
    rehearsal = Rehearsal(
        config, outline, _records(config), experts, devices=devices, probed=probed
    )
    return rehearsal.run()


def run(config: TrainConfig, folder: Path) -> int:
    """The most bytes that tensors hold in an update on the CPU, without weights that are read."""
    model, experts = config.model.open(), Experts(config.model, {}, Assumed())
    model.encode_prompts([""])
    files = {path: experts.of(path) for path in adapter_paths(config)}
    plan = TrainPlan(config, _records(config), ImaginedReward(), None, files)
    memory = LiveMemory("cpu")
    with memory, fused_attention():
        context = make_context(plan, model, ImaginedRanks(1), folder)
        name = config.algorithm.name
        method = ImaginedSFT(context) if name == "sft" else METHODS[name](context)
        trainer = Trainer(context, method, None, recipe="")
        for _ in range(UPDATES):
            memory.peak = memory.live
            for pieces in method.updates(method.batch(trainer.batches.draw())):
                trainer.make_update(pieces)
                context.meter.take(context.ranks)
    return memory.peak


def _records(config: TrainConfig) -> dict[str, Any]:
    return {
        name: [record for one in task.prompts for record in read_set(one)]
        for name, task in config.tasks.items()
    }
