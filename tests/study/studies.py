"""A small study on the fake model, whose trainings cost nothing and can be made to fail."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from flowopd.errors import FlowOPDError
from flowopd.policy.adapter_saving import write_adapter
from flowopd.policy.lora import LoraSettings
from flowopd.study.kinds import KINDS, Kind, Made, TrainKind
from flowopd.training.config import TrainConfig

GRPO = {"name": "grpo", "kl": 0.0}
STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": "fake",
    "scorers": ["bright"],
    "tasks": {
        "compose": {"prompts": "compose.jsonl", "reward": {"bright": 1}},
        "text": {"prompts": "words.txt", "reward": {"level": 1}},
    },
    "train": {
        "batch": {"prompts": 2, "images_per_prompt": 2},
        "rollout": {"steps": 3, "guidance": 1.0},
        "updates": 4,
        "algorithm": GRPO,
    },
    "stages": {
        "t-compose": {"train": {"tasks": {"compose": {}}}},
        "t-text": {"train": {"tasks": {"text": {}}}},
        "merged": {
            "merge": {"adapters": {"t-compose": 0.5, "t-text": 0.5}, "method": "svd", "rank": 2}
        },
        "opd": {
            "seeds": [0, 3],
            "train": {
                "start": "merged",
                "tasks": {"compose": {"teacher": "t-compose"}, "text": {"teacher": "t-text"}},
                "algorithm": {"name": "opd", "anchor": "base"},
            },
        },
    },
    "evaluation": {
        "protocol": "protocol.yaml",
        "rows": ["base", "t-compose", "opd"],
        "average": {"bright": 1, "level": 2},
        "panel": {"prompts": ["a cup", "a pan"], "seeds": [0, 1]},
    },
}
ORDER = ["t-compose", "t-text", "merged", "opd", "opd.s3"]
EVALS = ["eval.base", "eval.t-compose", "eval.opd", "eval.opd.s3"]
RAN, FAULTS = "ran.txt", "faults"


def write_study(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    path.write_text(yaml.safe_dump({**STUDY, **(changes or {})}, sort_keys=False))
    return path


class FakeTrain(TrainKind):
    """Real configuration and checks; an adapter that depends on the seed in no time.

    What it did goes into RUN/ran.txt. A file RUN/faults/STAGE says what goes wrong: "fail",
    "sleep" (for long), or "half" (killed when half of it is done, once).
    """

    def run(self, config: TrainConfig, folder: Path) -> Made:
        run = folder.parent.parent
        with (run / RAN).open("a") as file:
            file.write(f"{folder.name}\n")
        fault = run / FAULTS / folder.name
        what = fault.read_text() if fault.exists() else ""
        if what == "fail":
            raise FlowOPDError("it went wrong.")
        if what == "sleep":
            time.sleep(60)
        if what == "half":
            (folder / "checkpoints" / "update-00000002").mkdir(parents=True)
            fault.unlink()
            raise KeyboardInterrupt
        lines = [{"update": n, "images": 4 * n, "seconds": 0.5 * n} for n in range(1, 5)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        probe = {**lines[-1], "scores": {"bright": 0.5}}
        (folder / "probe.jsonl").write_text(json.dumps(probe) + "\n")
        save_adapter(folder / "adapter", sum(map(ord, folder.name)) + config.updates)
        (folder / "checkpoints" / f"update-{config.updates:08d}").mkdir(parents=True, exist_ok=True)
        return Made(4 * config.updates, 12 * config.updates, 2.0)


def save_adapter(folder: Path, seed: int) -> None:
    """A LoRA for the fake model with seed 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "to_q.lora_A.weight": torch.randn(2, 3, generator=generator),
        "to_q.lora_B.weight": torch.randn(3, 2, generator=generator),
    }
    notes = {"base": "fake", "fingerprint": "0" * 64, "guidance": 1.0}
    write_adapter(folder, LoraSettings(2, 2.0, ("to_q",)), tensors, notes, lora_prefix=None)


def kinds(train: TrainKind | None = None) -> dict[str, Kind]:
    return {**KINDS, "train": train or FakeTrain()}


def ran(run: Path) -> list[str]:
    """The trainings that were run, in order."""
    path = run / RAN
    return path.read_text().split() if path.exists() else []


def fault(run: Path, stage: str, what: str) -> None:
    (run / FAULTS).mkdir(parents=True, exist_ok=True)
    (run / FAULTS / stage).write_text(what)
