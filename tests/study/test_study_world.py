"""A whole study on the built-in world, with everything real and a handful of pictures."""

import json
from pathlib import Path

import pytest
import torch

from flowopd.study.config import load_study
from flowopd.study.run import run_study

PROMPTS = Path(__file__).parents[2] / "recipes" / "world" / "prompts"
PROTOCOL = f"""\
name: handful
prompts:
  - {{path: {PROMPTS}/compose.jsonl, limit: 12}}
  - {{path: {PROMPTS}/text.jsonl, limit: 4}}
steps: 8
guidance: 1.0
batch_size: 16
scorers: [world.compose, world.text, world.quality]
"""
STUDY = f"""\
name: handful
model: world
scorers: [world.quality]
tasks:
  compose: {{prompts: {PROMPTS}/compose.jsonl, reward: {{quality: {{scale: 5}}}}}}
  text: {{prompts: {PROMPTS}/text.jsonl, reward: {{quality: {{scale: 5}}}}}}
train:
  student: {{rank: 2, alpha: 2}}
  rollout: {{steps: 5, guidance: 1.0}}
  batch: {{prompts: 2, images_per_prompt: 2}}
  updates: 1
  probe:
    every: 1
    limit: 2
    prompts: [{{path: {PROMPTS}/compose.jsonl}}]
    scorers: [world.compose]
    sampling: {{steps: 2, guidance: 1.0}}
stages:
  t-compose: {{train: {{tasks: [compose], algorithm: {{name: nft}}, rollout: {{sampler: ode}}}}}}
  t-text: {{train: {{tasks: [text], algorithm: {{name: grpo}}}}}}
  merged:
    merge: {{adapters: {{t-compose: 0.5, t-text: 0.5}}, method: svd, rank: 2}}
  opd:
    seeds: [0, 1]
    train:
      start: merged
      tasks: {{compose: {{teacher: t-compose}}, text: {{teacher: t-text}}}}
      algorithm: {{name: opd, anchor: base, steps: {{choose: random, count: 1}}}}
      interference_every: 1
evaluation:
  protocol: protocol.yaml
  rows: [base, t-compose, merged, opd]
  average: {{compose: 1, text: 1, quality: 5}}
  panel: {{prompts: [a red circle], seeds: [0, 1]}}
report:
  figures:
    - {{kind: bars, rows: [base, opd], metrics: [compose, text, average]}}
    - {{kind: curves, rows: [opd, t-compose], metrics: [compose_soft]}}
    - {{kind: interference, rows: [opd]}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    (folder / "protocol.yaml").write_text(PROTOCOL)
    (folder / "study.yaml").write_text(STUDY)
    run_study(load_study(folder / "study.yaml"), folder / "run")
    return folder


def test_results(study: Path) -> None:
    results = json.loads((study / "run/results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["base", "t-compose", "merged", "opd"]
    assert {"compose", "text", "quality", "average"} <= set(rows["base"]["metrics"])
    assert (rows["t-compose"]["images"], rows["merged"]["images"]) == (4, 0)
    assert (rows["merged"]["images_total"], rows["opd"]["images_total"]) == (8, 12)
    assert rows["opd"]["seconds_total"] > rows["opd"]["seconds"] > 0
    means = [rows["base"]["metrics"][name]["mean"] for name in ("compose", "text", "quality")]
    average = rows["base"]["metrics"]["average"]
    assert average["mean"] == pytest.approx((means[0] + means[1] + means[2] / 5) / 3)
    assert 0 < average["low"] < average["mean"] < average["high"] < 1
    assert rows["opd"]["metrics"]["quality"]["n"] == 32


def test_report(study: Path) -> None:
    page = (study / "run/report.html").read_text()
    assert "t-compose" in page
    assert "data:image/png" in page


def test_nothing_is_left_to_do(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (study / "run/stages").rglob("*") if p.is_file()}
    run_study(load_study(study / "run/study.yaml"), study / "run")
    assert "started" not in capsys.readouterr().err
    after = {p: p.stat().st_mtime_ns for p in (study / "run/stages").rglob("*") if p.is_file()}
    assert after == before


def test_a_longer_student_goes_on_alone(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = ["stages.opd.train.updates=2", "stages.opd.seeds=[0]"]
    run_study(load_study(study / "study.yaml", change), study / "run")
    started = [line for line in capsys.readouterr().err.splitlines() if line.endswith("started")]
    assert started == ["opd: started", "eval.opd: started"]
    replaced = sorted(path.name.rpartition("-")[0] for path in (study / "run/replaced").iterdir())
    assert replaced == ["eval.opd"]
    log = (study / "run/stages/opd/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in log] == [1, 2]
    row = json.loads((study / "run/results.json").read_text())["rows"][-1]
    assert (row["name"], row["images"]) == ("opd", 8)
