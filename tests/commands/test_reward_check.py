"""`flowopd reward check` and `--skip-reward-check` from outside."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from fakes import fake_plugins, protocol
from flowopd.cli import app
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.rewards.settings import ScorerSpec
from flowopd.study.scorers import scorers_of

__all__ = ["fake_plugins", "protocol"]

pytestmark = pytest.mark.usefixtures("fake_plugins")

FILE = """
from fakes import BrightScorer
from flowopd.errors import FlowOPDError
from flowopd.rewards import Finding, MetricInfo
from flowopd.rewards.settings import ScorerSettings

class Settings(ScorerSettings):
    white: float = 1.0
    weights: bool = True
    more: dict[str, int] = {}

class Checked(BrightScorer):
    name = "checked"
    metrics = (MetricInfo("checked"),)
    Settings = Settings

    def __init__(self, settings):
        self.settings = settings

    def load(self):
        if not self.settings.weights:
            raise FlowOPDError("The scorer 'checked' has no model; fetch it.")

    def self_check(self):
        good = self.settings.white == 1
        return [Finding("a white picture", self.settings.white, "1", good)]

    def score(self, images, records):
        from flowopd.rewards.scorer import Scores
        return [Scores({"checked": 1.0}) for _ in records]
"""


@pytest.fixture
def checked(tmp_path: Path) -> str:
    (tmp_path / "checked.py").write_text(FILE)
    return f"{tmp_path}/checked.py:Checked"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def table(text: str) -> dict[str, list[str]]:
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if "│" in line]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


class TestCheck:
    def test_what_was_found(self, checked: str) -> None:
        result = call("reward", "check", checked, "bright")
        assert result.exit_code == 0, result.output
        assert "checked: good" in result.stdout
        assert "bright: loads; it has no self-check" in result.stdout
        rows = table(result.stdout)
        assert rows["a white picture"] == ["1", "1", "good"]
        assert float(rows["images a second"][0].replace(",", "")) > 0
        assert rows["memory (MiB)"][0].isdecimal()

    def test_one_that_reads_wrong_ends_with_2_and_a_sentence(self, checked: str) -> None:
        result = call("reward", "check", "bright", checked, "white=0.25")
        assert result.exit_code == 2
        assert "has no settings" in result.stderr
        result = call("reward", "check", checked, "white=0.25")
        assert result.exit_code == 2
        assert table(result.stdout)["a white picture"] == ["0.25", "1", "bad"]
        assert result.stderr == (
            "flowopd: The reward check failed: checked.py:Checked: a white picture gave 0.25, "
            "expected 1.\n"
        )

    def test_a_setting_within_a_setting(self, checked: str) -> None:
        result = call("reward", "check", checked, "more.seed=7")
        assert result.exit_code == 0, result.output
        result = call("reward", "check", checked, "more.seed=x")
        assert "more.seed' is 'x'" in result.stderr

    def test_all_are_checked_and_all_that_is_wrong_is_said(self, checked: str) -> None:
        result = call("reward", "check", checked, f"{checked}2", "weights=false")
        assert result.exit_code == 2
        assert "The scorer 'checked' has no model; fetch it" in result.stderr
        assert "defines no 'Checked2'" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "Which scorers? Name some (bright, picky, wrong, broken), or give --recipe"),
            (("brigth",), "There is no scorer 'brigth'. Did you mean 'bright'?"),
            (("bright", "--recipe", "x.yaml"), "Give names of scorers, or --recipe"),
            (("--recipe", "x.yaml"), "There is no configuration file x.yaml"),
        ],
    )
    def test_wrong_calls(self, arguments: tuple[str, ...], sentence: str) -> None:
        result = call("reward", "check", *arguments)
        assert result.exit_code == 2
        assert sentence in result.stderr


class TestRecipes:
    def test_those_of_a_protocol(self, protocol: Path, checked: str) -> None:
        result = call("reward", "check", "--recipe", protocol)
        assert result.exit_code == 0, result.output
        assert "bright: loads" in result.stdout
        assert "picky: loads" in result.stdout
        result = call(
            "reward", "check", "--recipe", protocol, f"scorers=['{checked}']", "scorers.0.white=2"
        )
        assert "a white picture gave 2, expected 1" in result.stderr
        result = call("reward", "check", "--recipe", protocol, "white=2")
        assert result.exit_code == 2
        assert "'white=2' changes no scorer of" in result.stderr

    def test_those_of_a_study_and_its_protocol(self, protocol: Path, checked: str) -> None:
        own = {"name": checked, "white": 2}
        study = {
            "name": "x",
            "model": "fake",
            "scorers": ["bright"],
            "train": {"probe": {"scorers": ["wrong", "bright"]}},
            "stages": {
                "a": {"train": {"scorers": [own]}},
                "b": {"merge": {"adapters": {"a": 1}}},
            },
            "evaluation": {"protocol": "protocol.yaml", "rows": ["a"]},
        }
        path = protocol.parent / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        found = scorers_of(path)
        assert [spec.title for spec in found] == ["bright", "wrong", "checked.py:Checked", "picky"]
        assert found[2].settings == {"white": 2.0}
        changed = scorers_of(path, ["stages.a.train.scorers.0.white=3"])
        assert changed[2].settings == {"white": 3.0}

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("name: x\n")
        with pytest.raises(FlowOPDError, match=r"neither a study .* nor a protocol"):
            scorers_of(tmp_path / "x.yaml")
        (tmp_path / "x.yaml").write_text("scorers: []\n")
        with pytest.raises(FlowOPDError, match="names no scorer"):
            scorers_of(tmp_path / "x.yaml")


class TestEvaluations:
    def test_they_check_first(self, protocol: Path, tmp_path: Path, checked: str) -> None:
        spec = f"scorers=[{{name: '{checked}', white: 0.5}}]"
        order = ("eval", protocol, "--model", "fake", "--out", tmp_path / "out", spec)
        result = call(*order)
        assert result.exit_code == 2
        assert "a white picture gave 0.5, expected 1. Nothing was begun" in result.stderr
        assert not (tmp_path / "out" / "scores" / "base.jsonl").exists()
        result = call(*order, "--skip-reward-check")
        assert result.exit_code == 0, result.output
        assert "warning: base: the scorers were not checked." in result.stderr
        (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        assert row["warnings"] == ["the scorers were not checked."]

    def test_a_study_hands_it_on_and_keeps_it_in_its_record(
        self, protocol: Path, tmp_path: Path, checked: str
    ) -> None:
        wrong = {"name": checked, "white": 0.5}
        study = {
            "name": "x",
            "model": "fake",
            "scorers": [wrong],
            "tasks": {"text": {"prompts": "words.txt", "reward": {"checked": 1}}},
            "stages": {
                "a": {
                    "train": {
                        "tasks": ["text"],
                        "algorithm": {"name": "opd", "log_reward": True, "anchor": "base"},
                        "rollout": {"steps": 2, "guidance": 1.0},
                        "batch": {"prompts": 1},
                        "updates": 1,
                    }
                }
            },
            "evaluation": {"protocol": "protocol.yaml", "rows": ["base"]},
        }
        study["tasks"]["text"]["teacher"] = str(make_teacher(tmp_path / "teacher", 1))
        path = protocol.parent / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        text = (protocol.parent / "protocol.yaml").read_text()
        own = f"scorers: [{{name: '{checked}', white: 0.5}}]"
        (protocol.parent / "protocol.yaml").write_text(
            text.replace("scorers: [bright, picky]", own)
        )
        out = tmp_path / "run"
        result = call("run", path, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.count("The reward check failed") == 4  # twice each: then, at the end
        result = call("run", path, "--out", out, "--skip-reward-check")
        assert result.exit_code == 0, result.output
        assert yaml.safe_load((out / "study.yaml").read_text())["check_rewards"] is False
        for stage, key in (("a", None), ("eval.base", "protocol")):
            config = json.loads((out / "stages" / stage / "stage.json").read_text())["config"]
            assert (config if key is None else config[key])["check_rewards"] is False
        note = (out / "stages" / "a" / "reward_check.jsonl").read_text().splitlines()
        assert [json.loads(line)["skipped"] for line in note] == [True]


def make_teacher(folder: Path, seed: int) -> Path:
    import torch

    from fakes import FakeConfig
    from flowopd.policy.bank import AdapterBank, Role

    model = FakeConfig().open()
    bank = AdapterBank(model.transformer, base_name="fake", fingerprint=model.fingerprint)
    bank.create("teacher", Role.STUDENT, rank=2, alpha=2, targets=["to_q"], seed=seed)
    with torch.no_grad():
        for _, parameter in bank.trainable_parameters():
            parameter.add_(0.1)
    bank.save("teacher", folder, metadata={}, lora_prefix=None)
    return folder


def test_a_scorer_is_named_without_its_folder(tmp_path: Path, checked: str) -> None:
    assert build(ScorerSpec, checked).title == "checked.py:Checked"
