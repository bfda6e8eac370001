"""Scorers that fail in one of several processes: what is missing is missing for all."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import ALGORITHMS, data_for

from flowopd.training.record import read_lines
from flowopd.training.reward_check import RECORD
from launching import launch, torchrun

pytestmark = pytest.mark.usefixtures("fake_plugins")

SCORERS = """
import os
from fakes import BrightScorer
from flowopd.rewards import Finding

class Half(BrightScorer):
    def score(self, images, records):
        if os.environ["RANK"] == "1":
            raise ValueError("not here")
        return super().score(images, records)

class Unchecked(BrightScorer):
    def self_check(self):
        assert os.environ["RANK"] == "0"
        return [Finding("a white picture", 0.5, "1", False)]
"""
WORKER = """
import json, sys
from pathlib import Path

from importlib.metadata import EntryPoint

sys.path[:0] = {paths!r}
from fakes import POINTS
from flowopd import plugins
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.training.config import TrainConfig
from flowopd.training.ranks import Ranks
from flowopd.training.run import prepare, train

plugins.found = lambda group: {{
    name: EntryPoint(name, value, f"flowopd.{{group}}") for name, value in POINTS[group].items()
}}
folder = Path(sys.argv[1])
said = {{}}
for name, data in json.loads((folder / "orders.json").read_text()).items():
    try:
        train(prepare(build(TrainConfig, data)), folder / name)
    except FlowOPDError as error:
        said[name] = str(error)
ranks = Ranks()
(folder / f"said-{{ranks.index}}.json").write_text(json.dumps(said))
ranks.leave()
"""


def test_two_processes(tmp_path: Path) -> None:
    half = data_for(
        tmp_path,
        ALGORITHMS["grpo"],
        scorers=[f"{tmp_path}/scorers.py:Half"],
        updates=2,
        batch={"prompts": 4, "images_per_prompt": 2, "micro": 2},
    )
    orders: dict[str, Any] = {
        "strict": half,
        "patient": half | {"rewards": {"most_missing": 0.5}},
        "wrong": half | {"scorers": [f"{tmp_path}/scorers.py:Unchecked"]},
    }
    (tmp_path / "scorers.py").write_text(SCORERS)
    (tmp_path / "orders.json").write_text(json.dumps(orders))
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    (tmp_path / "worker.py").write_text(WORKER.format(paths=paths))
    ended = launch(torchrun(2, str(tmp_path / "worker.py"), str(tmp_path)), tmp_path / "output.log")
    assert ended.code == 0, ended.output
    first, second = (json.loads((tmp_path / f"said-{n}.json").read_text()) for n in range(2))
    assert first == second
    missing = "4 of the 8 rewards of update 1 are missing"
    assert first["strict"].startswith(f"{missing}, more than rewards.most_missing allows (20%)")
    assert "a white picture gave 0.5, expected 1. Nothing was begun" in first["wrong"]
    assert set(first) == {"strict", "wrong"}
    reason = "level: ValueError: not here"
    lines = read_lines(tmp_path / "patient" / "log.jsonl")
    assert [line["missing"] for line in lines] == [{reason: 4}] * 2
    assert [line["missing_rewards"] for line in lines] == [0.5, 0.5]
    assert ended.output.count(f"{missing}: {reason} (4).") == 1
    assert len((tmp_path / "patient" / RECORD).read_text().splitlines()) == 1
