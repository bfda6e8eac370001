"""`flowopd plan` from outside: the tables, the numbers for machines, the sentences."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import write_adapters
from typer.testing import CliRunner, Result

from fakes import fake_plugins, protocol
from flowopd.cli import app
from flowopd.planning import needs

__all__ = ["fake_plugins", "protocol"]

pytestmark = pytest.mark.usefixtures("fake_plugins")

GRPO = {"name": "grpo", "kl": 0.0}
SD3: dict[str, Any] = {"family": "sd3", "device": "cpu", "dtype": "fp32", "t5_length": 16}


@pytest.fixture
def study(protocol: Path, tiny_pipeline: Path) -> Path:
    return write(protocol.parent / "study.yaml", {**SD3, "path": str(tiny_pipeline)})


def write(path: Path, model: Any, **changes: Any) -> Path:
    data = {
        "name": "tiny",
        "model": model,
        "scorers": ["bright"],
        "tasks": {
            "compose": {"prompts": "compose.jsonl", "reward": {"bright": 1}},
            "text": {"prompts": "words.txt", "reward": {"level": 1}},
        },
        "train": {
            "student": {"rank": 4},
            "batch": {"prompts": 2, "images_per_prompt": 2, "micro": 2},
            "rollout": {"steps": 2, "guidance": 4.5},
            "updates": 4,
            "algorithm": GRPO,
        },
        "stages": {
            "t-compose": {"train": {"tasks": {"compose": {}}}},
            "t-text": {"train": {"tasks": {"text": {}}}},
            "merged": {"merge": {"adapters": {"t-compose": 0.5, "t-text": 0.5}, "rank": 6}},
            "opd": {
                "seeds": [0, 3],
                "train": {
                    "start": "merged",
                    "tasks": {"compose": {"teacher": "t-compose"}, "text": {"teacher": "t-text"}},
                    "algorithm": {"name": "opd", "anchor": "base"},
                },
            },
        },
        "evaluation": {"protocol": "protocol.yaml", "rows": ["base", "opd"]},
        **changes,
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def numbers(folder: Path, *arguments: Any) -> dict[str, Any]:
    """What is written for machines."""
    file = folder / "plan.json"
    result = call(*arguments, "--json", file)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())


def stage(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["stages"] if name in one["stages"])


class TestAStudy:
    def test_every_stage_with_those_like_it(self, study: Path, tmp_path: Path) -> None:
        found = numbers(tmp_path, study)
        assert [one["stages"] for one in found["stages"]] == [
            ["t-compose", "t-text"],
            ["merged"],
            ["opd"],
            ["eval.base"],
            ["eval.opd"],
        ]
        assert found["memory"] is None
        assert {one["fits"] for one in found["stages"]} == {None}
        assert not (tmp_path / "runs").exists()

    def test_work_is_counted(self, study: Path, tmp_path: Path) -> None:
        work = stage(numbers(tmp_path, study), "opd")["work"]
        images, guided, trained = 4, 2, 2
        assert work["images_per_update"] == images
        # the fused step: the student once, its teacher, the anchor; each guided
        assert work["forwards_per_update"] == images * trained * guided * 3
        assert work["backwards_per_update"] == images * trained * guided
        assert (work["images"], work["updates"]) == (16, 4)
        evaluated = stage(numbers(tmp_path, study), "eval.base")["work"]
        assert evaluated["images"] == 2 * (4 + 3)

    def test_a_start_that_is_to_be_made_has_the_rank_that_it_will_have(
        self, study: Path, tmp_path: Path
    ) -> None:
        found = numbers(tmp_path, study)
        items = {item["name"]: item["size"] for item in stage(found, "opd")["held"]}
        teachers = {item["name"]: item["size"] for item in stage(found, "t-text")["held"]}
        assert items["student"] / teachers["student"] == pytest.approx(6 / 4, rel=0.1)
        assert 2 <= items["adapters of teachers and anchor"] / teachers["student"] < 3
        made = stage(found, "merged")["disk"][0]["size"]
        assert made == pytest.approx(items["student"], rel=0.15)

    def test_only_some_with_what_they_need(self, study: Path, tmp_path: Path) -> None:
        found = numbers(tmp_path, study, "--only", "merged")
        assert [one["stages"] for one in found["stages"]] == [["t-compose", "t-text"], ["merged"]]
        seed = numbers(tmp_path, study, "--only", "eval.opd.s3")
        assert ["eval.opd"] in [one["stages"] for one in seed["stages"]]

    def test_changes_on_the_command_line(self, study: Path, tmp_path: Path) -> None:
        found = numbers(tmp_path, study, "train.updates=20", "--devices", 2, "--only", "t-text")
        work = stage(found, "t-text")["work"]
        assert work["updates"] == 20
        assert work["division"].startswith("2 devices: 2 images each")

    def test_as_many_devices_as_were_launched(
        self, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert numbers(tmp_path, study, "--only", "t-text")["devices"] == 4

    def test_a_prompt_file_that_is_not_here_yet(self, study: Path, tmp_path: Path) -> None:
        (study.parent / "words.txt").unlink()
        found = numbers(tmp_path, study, "--only", "t-text")
        assert len(found["assumed"]) == 1
        assert "words.txt is not here; it is taken for" in found["assumed"][0]


def one_training(study: Path, **changes: Any) -> Path:
    """In place of the study's stages."""
    data = yaml.safe_load(study.read_text())
    data["train"] |= changes
    tasks = {name: dict[str, Any]() for name in data["tasks"]}
    data["stages"] = {"it": {"train": {"tasks": tasks}}}
    data["evaluation"]["rows"] = ["base"]
    study.write_text(yaml.safe_dump(data, sort_keys=False))
    return study


class TestHostMemory:
    def test_the_result_of_a_student_that_is_trained_whole(
        self, study: Path, tmp_path: Path
    ) -> None:
        """While it is saved; of a checkpoint there is no copy."""
        found = stage(
            numbers(tmp_path, one_training(study, student={"full": True}), "--only", "it"), "it"
        )
        assert [item["name"] for item in found["host"]] == ["the transformer"]
        assert found["host"][0]["size"] == stage_disk(found, "the transformer")

    def test_the_pool_of_a_fine_tuning(
        self, study: Path, tiny_pipeline: Path, tmp_path: Path
    ) -> None:
        teacher = str(write_adapters(tiny_pipeline, tmp_path)["words"])
        tasks = {"text": {"prompts": "words.txt", "teacher": teacher}}
        sft = {"name": "sft", "images_per_task": 5}
        data = yaml.safe_load(study.read_text()) | {"tasks": tasks}
        study.write_text(yaml.safe_dump(data))
        found = stage(numbers(tmp_path, one_training(study, algorithm=sft), "--only", "it"), "it")
        assert [item["name"] for item in found["host"]] == ["pool"]
        assert found["host"][0]["size"] == 4 * 5 * 16 * 8 * 8


def stage_disk(found: dict[str, Any], name: str) -> int:
    return next(item["size"] for item in found["disk"] if item["name"] == name)


class TestAVerdict:
    def test_it_fits(self, study: Path) -> None:
        result = call(study, "--memory", 80, "--only", "t-text")
        assert result.exit_code == 0, result.output
        assert "80.00 GiB: fits" in result.stdout
        assert "batch.micro" not in result.stdout

    def test_it_does_not_fit_and_what_would_help_is_planned(
        self, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(needs, "FIXED", 0)  # against which all of this would be nothing
        arguments = (study, "--only", "t-text")
        peak = stage(numbers(tmp_path, *arguments), "t-text")["peak"]
        memory = ("--memory", (peak - 100_000) / 2**30)
        found = stage(numbers(tmp_path, *arguments, *memory), "t-text")
        assert (found["fits"], found["peak"]) == (False, peak)
        changes = {change["settings"]: change for change in found["changes"]}
        for settings, override in {
            "batch.micro: 1": "train.batch.micro=1",
            "model.gradient_checkpointing: true": "model.gradient_checkpointing=true",
        }.items():
            planned = stage(numbers(tmp_path, *arguments, override), "t-text")
            assert changes[settings]["peak"] == planned["peak"]
            assert changes[settings]["fits"] == (planned["peak"] <= peak - 100_000)

    def test_an_evaluation_that_draws_too_many_at_once(
        self, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(needs, "FIXED", 0)
        arguments = (study, "--only", "eval.base")
        peak = stage(numbers(tmp_path, *arguments), "eval.base")["peak"]
        memory = ("--memory", (peak - 1) / 2**30)
        found = stage(numbers(tmp_path, *arguments, *memory), "eval.base")
        assert [change["settings"] for change in found["changes"]] == ["batch_size: 1"]
        assert found["changes"][0]["peak"] < peak

    def test_the_table_says_by_how_much(self, study: Path) -> None:
        result = call(study, "--memory", 0.5, "--only", "t-text")
        assert "does not fit, by" in result.stdout


class TestRefused:
    def test_no_study(self) -> None:
        assert "Which study?" in call("--devices", 1, "name=x").stderr

    def test_a_stage_that_is_not_there(self, study: Path) -> None:
        result = call(study, "--only", "t-txt")
        assert result.exit_code == 2
        assert "--only names 't-txt'" in result.stderr
        assert "Did you mean 't-text'?" in result.stderr

    def test_more_devices_than_images(self, study: Path) -> None:
        result = call(study, "--devices", 5)
        assert result.exit_code == 2
        assert "fewer than" in result.stderr

    def test_passes_in_which_a_student_in_shares_would_miss_a_device(self, study: Path) -> None:
        batch = {"prompts": 2, "images_per_prompt": 2, "micro": 1}
        result = call(one_training(study, student={"full": True}, batch=batch), "--devices", 3)
        assert result.exit_code == 2
        assert "have none in a pass" in result.stderr

    def test_a_hub_that_cannot_be_reached(self, protocol: Path) -> None:
        study = write(protocol.parent / "study.yaml", {**SD3, "path": "somebody/a-pipeline"})
        result = call(study)
        assert result.exit_code == 2
        assert "somebody/a-pipeline" in result.stderr


def test_a_family_that_cannot_be_rehearsed_is_counted(protocol: Path, tmp_path: Path) -> None:
    study = write(protocol.parent / "study.yaml", "fake")
    found = numbers(tmp_path, study, "--memory", 1)
    opd = stage(found, "opd")
    assert opd["work"]["images_per_update"] == 4
    assert (opd["phases"], opd["fits"]) == ([], None)
    assert opd["notes"] == ["Memory and disk are not planned for models of the family fake."]
