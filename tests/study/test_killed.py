"""kill -9, for real, at random moments of a whole study: it ends in the same bytes."""

import json
import os
import random
import signal
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch

from flowopd.files import sha256
from flowopd.study.config import load_study
from flowopd.study.run import run_study

pytestmark = [
    pytest.mark.usefixtures("fake_plugins"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

KILLS, MOST_RUNS = 10, 8
STUDY = """\
name: killed
model: fake
scorers: [bright]
tasks:
  shapes: {prompts: shapes.jsonl, reward: {level: 1}}
  words: {prompts: words.jsonl, reward: {level: -1}}
train:
  student: {rank: 2, alpha: 4}
  rollout: {steps: 4, guidance: 1.0, sampler: flow_sde}
  batch: {prompts: 4, images_per_prompt: 2, micro: 4}
  optimizer: {lr: 0.01}
  ema: {decay: 0.9, every: 1}
  updates: 16
  checkpoint: {every: 1}
stages:
  bright: {train: {tasks: {shapes: {}}, algorithm: {name: grpo}}}
  dark: {train: {tasks: {words: {}}, algorithm: {name: nft}}}
  tuned:
    train:
      tasks: {shapes: {teacher: bright}, words: {teacher: dark}}
      algorithm: {name: sft, images_per_task: 12}
      rollout: {sampler: ode}
  merged: {merge: {adapters: {bright: 0.5, dark: 0.5}, method: svd, rank: 2}}
  student:
    train:
      start: merged
      tasks: {shapes: {teacher: bright}, words: {teacher: dark}}
      algorithm: {name: opd, anchor: base, steps: {choose: random, count: 2}}
"""


@pytest.fixture
def study_path(tmp_path: Path) -> Path:
    for task in ("shapes", "words"):
        lines = [{"prompt": f"{task} {'e' * n}", "task": task} for n in range(7)]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def run_forked(path: Path, out: Path, patience: float | None) -> bool:
    """Run the study in a child process; kill it after `patience`. True: it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
                run_study(load_study(path), out)
            status = 0
        finally:
            os._exit(status)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def test_killed_at_ten_random_moments(study_path: Path, tmp_path: Path) -> None:
    """A run that came to its end before it could be killed is followed by a new one."""
    torch.set_num_threads(1)
    start = time.monotonic()
    assert run_forked(study_path, tmp_path / "run-0", None)
    whole = time.monotonic() - start
    moments = random.Random(5)
    runs, kills = 1, 0
    while kills < KILLS and runs < MOST_RUNS:
        patience = moments.uniform(0.05, 0.5) * whole
        ended = run_forked(study_path, tmp_path / f"run-{runs}", patience)
        kills, runs = kills + (not ended), runs + ended
    assert kills == KILLS
    for number in range(1, runs + 1):
        folder = tmp_path / f"run-{number}"
        assert run_forked(study_path, folder, None)
        for stage in ("bright", "dark", "tuned", "merged", "student"):
            file = Path("stages") / stage / "adapter" / "adapter_model.safetensors"
            assert sha256(folder / file) == sha256(tmp_path / "run-0" / file), stage
