"""Distillation on a tiny pipeline of SD3.5's shape, from two random published-format adapters."""

import json
from pathlib import Path

import pytest
from sd3_runs import PROMPTS, lora, sd3_config

from flowopd.training.run import prepare, train

TASKS = ("shapes", "words")


def errors(folder: Path, pipeline: Path, updates: int) -> dict[str, float]:
    """What is left of the mean velocity error to each task's teacher, at the student's states."""
    taught = {task: lora(folder / task, seed, rank=2) for seed, task in enumerate(TASKS, 1)}
    config = sd3_config(
        folder,
        pipeline,
        taught,
        student={"rank": 16, "alpha": 32},
        rollout={"steps": 3, "guidance": 1.0, "sampler": "flow_sde"},
        batch={"prompts": 8, "micro": 8},
        optimizer={"lr": 1.5e-2, "decay": "cosine"},
        updates=updates,
        checkpoint={"every": updates},
    )
    train(prepare(config), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    left = {}
    for task in TASKS:
        found = [line[f"task/{task}/velocity_error"] for line in lines]
        left[task] = sum(found[-5:]) / 5 / found[0]
    return left


def test_one_student_learns_both_teachers_each_on_its_own_task(
    tmp_path: Path, tiny_pipeline_no_t5: Path
) -> None:
    assert max(errors(tmp_path, tiny_pipeline_no_t5, 110).values()) < 0.1


def test_and_cannot_on_the_same_task_so_that_the_route_matters(
    tmp_path: Path, tiny_pipeline_no_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two different answers to one question, a student can give the mean."""
    monkeypatch.setitem(PROMPTS, "words", PROMPTS["shapes"])
    assert min(errors(tmp_path, tiny_pipeline_no_t5, 50).values()) > 0.4
