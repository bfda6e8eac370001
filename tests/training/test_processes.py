"""Several processes: the same update on 1, 2 and 4 of them, and one end for all."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, data_for, make
from safetensors.torch import load_file

from flowopd.config import build
from flowopd.training.config import TrainConfig
from flowopd.training.record import read_lines
from flowopd.training.run import prepare, train
from flowopd.training.trainer import Trainer
from launching import launch, torchrun

pytestmark = pytest.mark.usefixtures("fake_plugins")
WORKER = Path(__file__).parent / "process_worker.py"
ANCHORED = {"name": "opd", "anchor": {"adapter": "base", "weight": 0.5, "share": 0.3}}
EVERY = ALGORITHMS | {
    "anchored": ANCHORED | {"path": "fused"},
    "anchored stored": ANCHORED | {"path": "stored", "steps": {"choose": "random", "count": 2}},
    "both": {"name": "opd", "loss": "both"},
}
UNEVEN = {"prompts": 3, "images_per_prompt": 3, "micro": 2}


TOGETHER = """\
from collections import defaultdict
from fakes import BrightScorer
from flowopd.rewards.scorer import Scores

class Together(BrightScorer):
    grouped = True

    def score(self, images, records):
        levels, prompts = images.mean(axis=(1, 2, 3)) / 255, defaultdict(list)
        for level, record in zip(levels, records):
            prompts[record.prompt].append(level)
        darkest = [min(prompts[record.prompt]) for record in records]
        return [
            Scores({"bright": 0.0, "level": float(level * (level > low))})
            for level, low in zip(levels, darkest)
        ]
"""


def configs(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run by every algorithm, and one whose scorer compares the pictures of a prompt."""
    (folder / "scorer.py").write_text(TOGETHER)
    found = {name: data_for(folder, keys, **changes) for name, keys in EVERY.items()}
    return found | {"together": found["grpo"] | {"scorers": [f"{folder}/scorer.py:Together"]}}


def run(folder: Path, count: int, orders: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of the processes said."""
    file = folder / "orders.json"
    file.write_text(json.dumps(orders))
    ended = launch(torchrun(count, str(WORKER), str(file)), folder / "output.log")
    assert ended.code == 0, ended.output
    return [json.loads((folder / f"said-{n}.json").read_text()) for n in range(count)]


def check_gradients(folder: Path, alone: Path, data: dict[str, Any]) -> None:
    found = load_file(folder / "gradients.safetensors")
    for name, keys in data.items():
        expected = make(alone / name, build(TrainConfig, keys)).gradient
        assert expected.norm() > 1e-4
        assert (found[name] - expected).norm() < 2e-5 * expected.norm(), name


def check_parts(said: list[dict[str, Any]], data: dict[str, Any]) -> None:
    """Counts differ by one at most, every task is spread, and no pass is too large."""
    for name, keys in data.items():
        counts = [Counter[str]() for _ in said]
        for own, one in zip(counts, said, strict=True):
            for task, size in one[name]:
                assert size <= keys["batch"]["micro"]
                own[task] += size
        for numbers in [[own.total() for own in counts]] + [
            [own[task] for own in counts] for task in keys["tasks"]
        ]:
            assert max(numbers) - min(numbers) <= 1, name


def adapter(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[key].reshape(-1) for key in sorted(tensors)])


def check_run(folder: Path, whole: Path) -> None:
    """The same run but for rounding, which Adam makes larger where gradients are small."""
    one, other = adapter(folder), adapter(whole)
    assert (one - other).norm() < 1e-3 * other.norm()
    for ours, theirs in zip(
        read_lines(folder / "log.jsonl"), read_lines(whole / "log.jsonl"), strict=True
    ):
        assert ours.keys() == theirs.keys()
        for key in set(ours) - {"seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def killed(data: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends without a word in its fourth update."""
    inner = Trainer.make_update

    def dying(self: Trainer, pieces: Any) -> None:
        if self.context.update == 3:
            raise Killed
        inner(self, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "make_update", dying)
        with pytest.raises(Killed):
            train(prepare(build(TrainConfig, data)), folder)


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their updates, a run that one process began, the text cache, and faults of one of them."""
    data = configs(tmp_path)
    probes = [{"path": task["prompts"]} for task in data["grpo"]["tasks"].values()]
    probe = {"every": 4, "prompts": probes, "scorers": ["bright"], "sampling": {"steps": 2}}
    resumed = data["grpo"] | {"probe": probe, "ema": {"decay": 0.5, "every": 1}}
    killed(resumed, tmp_path / "resumed", monkeypatch)
    train(prepare(build(TrainConfig, resumed)), tmp_path / "whole")
    other = resumed | {"batch": resumed["batch"] | {"micro": 2}}
    orders = {"gradients": data, "trainings": {"resumed": other}, "cache": True}
    said = run(tmp_path, 2, orders | {"faults": data["opd"], "failure": data["grpo"]})
    assert [one["count"] for one in said] == [2, 2]
    check_gradients(tmp_path, tmp_path / "alone", data)
    check_parts(said, data)
    check_run(tmp_path / "resumed", tmp_path / "whole")
    assert said[0]["resumed"] == said[1]["resumed"]
    prompts = {f"prompt {n}" for n in range(9)}
    assert set(said[0]["encoded"]) | set(said[1]["encoded"]) == prompts | {""}
    assert sorted(len(one["encoded"]) for one in said) == [5, 5]
    assert said[0]["read"] == said[1]["read"]
    assert said[0]["encoded again"] == said[1]["encoded again"] == []
    check_faults(said, tmp_path / "faults")
    check_failure(said)
    output = (tmp_path / "output.log").read_text()
    assert output.count("2 processes: 4 images each an update, in 2 passes of up to 2\n") >= 2


def check_faults(said: list[dict[str, Any]], folder: Path) -> None:
    """Skipped by both, and ended with what was wrong in the second of them."""
    sentence = "3 updates in a row (the last is 3) had a number that is not finite: the gradient of"
    for one in said:
        assert sentence in one["fault"]
        assert "to_q.lora_A.weight in the task 'words' at step 0 of the rollout" in one["fault"]
    lines = read_lines(folder / "log.jsonl")
    assert [line["skipped"] for line in lines] == [1, 1]


def check_failure(said: list[dict[str, Any]]) -> None:
    assert said[1]["failure"] == "The decoder is broken."
    assert said[0]["failure"].startswith("Another process of this run has ended, and this one ends")
    assert "the same command goes on" in said[0]["failure"]


def test_four_processes_and_batches_that_do_not_divide(tmp_path: Path) -> None:
    data = configs(tmp_path, batch=UNEVEN)
    alternating = {**UNEVEN, "mixing": "alternating"}
    data["alternating"] = data_for(tmp_path, ALGORITHMS["opd"], batch=alternating)
    said = run(tmp_path, 4, {"gradients": data})
    check_gradients(tmp_path, tmp_path / "alone", data)
    check_parts(said, data)
