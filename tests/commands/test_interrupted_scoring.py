"""Ctrl-C while scorers are at work: the update is finished and saved, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launching import with_fakes

SCORER = """
import os
from pathlib import Path
from flowopd.rewards import MetricInfo, Scores

class Far:
    name, version, tasks, grouped, workers = "far", 1, None, False, "processes"
    metrics = (MetricInfo("far"),)

    def score(self, images, records):
        (Path(__file__).parent / f"pid-{os.getpid()}").touch()
        return [Scores({"far": float(image.mean())}) for image in images]
"""
STUDY = """
name: far
model: fake
scorers: [{name: 'far.py:Far', processes: 1}]
tasks: {any: {prompts: prompts.txt, reward: {far: 1}}}
stages:
  a:
    train:
      tasks: [any]
      algorithm: {name: nft}
      rollout: {steps: 2, guidance: 1.0, sampler: ode}
      batch: {prompts: 2, images_per_prompt: 2, micro: 2}
      updates: 100000
"""


def until(holds: Callable[[], bool], seconds: float = 300.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_the_update_is_finished_and_no_process_is_left(tmp_path: Path) -> None:
    (tmp_path / "far.py").write_text(SCORER)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo squares\n")
    folder = tmp_path / "run"
    log, checkpoints = folder / "stages" / "a" / "log.jsonl", folder / "stages/a/checkpoints"
    command = [sys.executable, "-m", "flowopd", "run", str(tmp_path / "study.yaml")]
    run = subprocess.Popen(
        [*command, "--out", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **with_fakes(tmp_path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert until(lambda: log.exists() and len(log.read_text().splitlines()) > 2)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "ended by SIGINT after update" in said
    assert "missing" not in log.read_text().replace('"missing_rewards": 0.0', "")
    last = len(log.read_text().splitlines())
    assert str(last) in [
        path.name.removeprefix("update-").lstrip("0") for path in checkpoints.iterdir()
    ]
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 1
    assert until(lambda: not Path(f"/proc/{pids[0]}").exists(), 60)
