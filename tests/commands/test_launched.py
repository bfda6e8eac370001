"""`flowopd run` under the launchers: a study written once, killed, gone on with, refused."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fakes import fake_plugins
from flowopd.study.config import load_study
from flowopd.study.run import run_study
from flowopd.training.record import read_lines
from launching import accelerate, launch, start, torchrun, wait, with_fakes

__all__ = ["fake_plugins"]

SCORER = """\
import os, time
from fakes import BrightScorer

class Slow(BrightScorer):
    def score(self, images, records):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return super().score(images, records)
"""
PROTOCOL = """\
name: handful
prompts: [{path: shapes.jsonl, limit: 6}]
images_per_prompt: 3
steps: 2
guidance: 1.0
batch_size: 4
scorers: [bright]
"""
STUDY = """\
name: several
model: fake
scorers: [FOLDER/scorer.py:Slow]
tasks:
  shapes: {prompts: shapes.jsonl, reward: {level: 1}}
  words: {prompts: words.jsonl, reward: {level: -1}}
train:
  student: {rank: 2, alpha: 4}
  rollout: {steps: 3, guidance: 1.0}
  batch: {prompts: 3, images_per_prompt: 3, micro: 2}
  optimizer: {lr: 0.01}
  updates: 40
  checkpoint: {every: 3}
stages:
  both: {train: {tasks: [shapes, words], algorithm: {name: grpo}}}
  half: {merge: {adapters: {both: 0.5}, any_sum: true}}
  student:
    train:
      tasks: {shapes: {teacher: both}, words: {teacher: half}}
      algorithm: {name: opd, anchor: {adapter: base, share: 0.5}}
      updates: 3
evaluation: {protocol: protocol.yaml, rows: [base, student]}
"""
MODULE = ("-m", "flowopd", "run")
ENDED = "flowopd: process 0 of 2: Another process of this run has ended, and this one ends with it"
DIVIDED = "2 processes: 4 or 5 images each an update, in 3 passes of up to 2"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for task in ("shapes", "words"):
        lines = [{"prompt": f"{task} {'e' * n}", "task": task} for n in range(7)]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for name, text in [("scorer.py", SCORER), ("protocol.yaml", PROTOCOL), ("s.yaml", STUDY)]:
        (tmp_path / name).write_text(text.replace("FOLDER", str(tmp_path)))
    return tmp_path / "s.yaml"


def adapter(run: Path, stage: str) -> torch.Tensor:
    tensors = load_file(run / "stages" / stage / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[key].reshape(-1) for key in sorted(tensors)])


def kill_one(launcher: "subprocess.Popen[bytes]", log: Path, updates: int) -> None:
    """kill -9 for the process that is not the main one, after so many updates."""
    deadline = time.monotonic() + 100
    while not log.exists() or log.read_text().count("\n") < updates:
        assert launcher.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.01)
    children = psutil.Process(launcher.pid).children(recursive=True)
    (victim,) = [child for child in children if child.environ().get("RANK") == "1"]
    os.kill(victim.pid, signal.SIGKILL)


@pytest.mark.usefixtures("fake_plugins")
def test_one_is_killed_and_one_alone_goes_on(study: Path, tmp_path: Path) -> None:
    """Under accelerate's launcher; what was begun by two is ended by one, and is the same."""
    out, log = tmp_path / "killed", tmp_path / "output.log"
    command = accelerate(2, *MODULE, str(study), "--out", str(out), "--only", "both")
    launcher = start(command, log, {**with_fakes(tmp_path), "SLOW": "0.1"})
    kill_one(launcher, out / "stages" / "both" / "log.jsonl", 5)
    killed = time.monotonic()
    ended = wait(launcher, log)
    assert time.monotonic() - killed < 20
    assert ended.code != 0
    assert ENDED in ended.output
    assert "the same command goes on from the last of them" in ended.output
    assert DIVIDED in ended.output
    assert not (out / "stages" / "both" / "adapter").exists()
    assert 5 <= len(read_lines(out / "stages" / "both" / "log.jsonl")) < 40
    for folder in (out, tmp_path / "whole"):
        run_study(load_study(study), folder, only=["both"])
    one, other = adapter(out, "both"), adapter(tmp_path / "whole", "both")
    assert (one - other).norm() < 1e-3 * other.norm()


@pytest.mark.usefixtures("fake_plugins")
def test_two_processes_do_a_study_and_write_it_once(study: Path, tmp_path: Path) -> None:
    changes = ["train.updates=3"]
    out = tmp_path / "launched"
    command = torchrun(2, *MODULE, str(study), *changes, "--out", str(out))
    ended = launch(command, tmp_path / "output.log", with_fakes(tmp_path))
    assert ended.code == 0, ended.output
    run_study(load_study(study, changes), tmp_path / "alone")
    for stage in ("both", "half", "student", "eval.base", "eval.student"):
        assert (out / "stages" / stage / "done.json").exists()
        assert ended.output.splitlines().count(f"{stage}: started") == 1
    assert ended.output.count(DIVIDED) == 2
    assert (out / "report.html").exists()
    assert ended.output.count(f"{out}\n") == 1
    for stage in ("both", "half", "student"):
        one, other = adapter(out, stage), adapter(tmp_path / "alone", stage)
        assert (one - other).norm() < 1e-3 * other.norm()
    scores = [
        (run / "stages" / "eval.base" / "scores" / "base.jsonl").read_text()
        for run in (out, tmp_path / "alone")
    ]
    assert scores[0] == scores[1]
