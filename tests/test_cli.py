"""The commands from outside: files, exit codes, sentences. Bad input ends before weights load."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from fakes import FakeModel, fake_adapter, fake_plugins, protocol
from flowopd.cli import app
from flowopd.policy.sd3 import SD3Model

__all__ = ["fake_adapter", "fake_plugins", "protocol"]

pytestmark = pytest.mark.usefixtures("fake_plugins")

DRAW = ("sample", "--model", "fake", "--prompt", "a red cup", "--steps", "2", "--guidance", "1")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model fails the test."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(FakeModel, "__init__", fail)
    monkeypatch.setattr(SD3Model, "__init__", fail)


class TestSample:
    def test_pictures_sheet_and_record(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        extra = ("--prompt", "two blue Cups!", "--images-per-prompt", 2, "--seed", 7)
        result = call(*DRAW, *extra, "--out", out)
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in out.iterdir()) == [
            "00000_seed7_a-red-cup.png",
            "00001_seed8_a-red-cup.png",
            "00002_seed7_two-blue-cups.png",
            "00003_seed8_two-blue-cups.png",
            "contact_sheet.png",
            "sample.json",
        ]
        record = json.loads((out / "sample.json").read_text())
        assert record["config"]["steps"] == 2
        assert record["config"]["model"] == {"family": "fake", "seed": 0, "refused": False}
        assert record["model"]["name"] == "fake"
        assert record["images"][3] == {
            "file": "00003_seed8_two-blue-cups.png",
            "prompt": "two blue Cups!",
            "seed": 8,
        }
        with Image.open(out / "contact_sheet.png") as sheet:
            assert sheet.width > 2 * 150

    def test_a_picture_depends_on_prompt_and_seed_only(self, tmp_path: Path) -> None:
        one, many = tmp_path / "one", tmp_path / "many"
        call(*DRAW, "--seed", 8, "--out", one)
        call(*DRAW, "--prompt", "x", "--images-per-prompt", 3, "--seed", 6, "--out", many)
        assert pixels(one / "00000_seed8_a-red-cup.png") == pixels(
            many / "00002_seed8_a-red-cup.png"
        )
        assert pixels(many / "00001_seed7_a-red-cup.png") != pixels(
            many / "00002_seed8_a-red-cup.png"
        )

    @pytest.mark.parametrize(
        "change",
        [
            ("--steps", 3),
            ("--guidance", 3),
            ("--sampler", "cps"),
            ("--sampler", "flow_sde", "--noise-level", 0.3),
            ("--seed", 1),
            ("model.seed=1",),
            ("shift=3",),
        ],
    )
    def test_every_option_changes_the_picture(self, tmp_path: Path, change: Any) -> None:
        call(*DRAW, "--out", tmp_path / "a")
        result = call(*DRAW, "--out", tmp_path / "b", *change)
        assert result.exit_code == 0, result.output
        first, second = (next((tmp_path / name).glob("00000*")) for name in "ab")
        assert pixels(first) != pixels(second)

    def test_an_adapter_changes_the_picture_and_warns(
        self, tmp_path: Path, fake_adapter: Path
    ) -> None:
        call(*DRAW, "--out", tmp_path / "a")
        result = call(*DRAW, "--out", tmp_path / "b", "--adapter", fake_adapter)
        assert result.exit_code == 0, result.output
        assert "was trained for guidance 3" in result.stderr
        first, second = (next((tmp_path / name).glob("00000*")) for name in "ab")
        assert pixels(first) != pixels(second)
        record = json.loads((tmp_path / "b" / "sample.json").read_text())
        assert len(record["adapter"]["sha256"]) == 64

    def test_prompts_of_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text('{"prompt": "b", "target": "B"}\n')
        call(*DRAW, "--prompts", file, "--out", tmp_path / "out")
        assert len(list((tmp_path / "out").glob("0*.png"))) == 2

    def test_dry_run_prints_what_can_be_fed_back(self, tmp_path: Path) -> None:
        first = call(*DRAW, "--out", tmp_path / "out", "--dry-run", "shift=2")
        assert first.exit_code == 0
        assert not (tmp_path / "out").exists()
        assert yaml.safe_load(first.stdout)["shift"] == 2
        (tmp_path / "again.yaml").write_text(first.stdout)
        second = call("sample", tmp_path / "again.yaml", "--dry-run")
        assert second.stdout == first.stdout
        assert call("sample", tmp_path / "again.yaml").exit_code == 0

    def test_a_configuration_file_with_overrides(self, tmp_path: Path) -> None:
        file = tmp_path / "sample.yaml"
        file.write_text("model: fake\nprompts: [a cup]\nsteps: 4\n")
        changes = (f"out={tmp_path / 'out'}", "steps=3", "model.seed=4")
        result = call("sample", file, *changes, "--dry-run")
        resolved = yaml.safe_load(result.stdout)
        assert resolved["steps"] == 3
        assert resolved["model"] == {"family": "fake", "seed": 4, "refused": False}


@pytest.mark.usefixtures("no_weights")
class TestBadInput:
    """Each with a sentence on stderr and exit code 2, before weights load."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("stepz=3",), "Unknown key 'stepz'. Did you mean 'steps'?"),
            (("model.sed=3",), "Unknown key 'model.sed'. Did you mean 'model.seed'?"),
            (("steps=many",), "The key 'steps' is 'many'; it should be a valid integer"),
            (("--steps", "many"), "--steps"),
            (("--steps", "-3"), "The key 'steps' is -3; it should be greater than or equal to 1"),
            (("steps=-3",), "The key 'steps' is -3"),
            (("--seed", "-1"), "The key 'seed' is -1"),
            (("--batch-size", "0"), "The key 'batch_size' is 0"),
            (("--sampler", "euler"), "'sampler' is 'euler'; it should be 'ode', 'flow_sde' or"),
            (("--prompt", " "), "'prompts.1' is ' '; it should be a text that is not blank"),
            (("--prompts", "none.txt"), "There is no prompt file none.txt"),
            (("--adapter", "none"), "No adapter at none"),
            (("--model", "fak"), "There is no model 'fak'. Did you mean 'fake'?"),
            (("model.refused=true",), "This fake model cannot be opened"),
            (("none.yaml",), "There is no configuration file none.yaml"),
            (("nonsense",), "'nonsense' is neither a configuration (.yaml) nor key=value"),
        ],
    )
    def test_sample(self, tmp_path: Path, arguments: Any, sentence: str) -> None:
        result = call(*DRAW, "--out", tmp_path / "out", *arguments)
        assert result.exit_code == 2, result.output
        assert sentence in " ".join(result.stderr.split())
        assert not (tmp_path / "out").exists()

    def test_no_prompt_no_model_no_folder(self, tmp_path: Path) -> None:
        assert refusal(call("sample", "--model", "fake", "--out", tmp_path)) == (
            "flowopd: There is no prompt to draw; give --prompt TEXT or --prompts FILE."
        )
        assert "'model' is missing" in refusal(call("sample", "--prompt", "a", "--out", tmp_path))
        assert "'out' is missing" in refusal(call("sample", "--prompt", "a", "--model", "fake"))

    def test_an_empty_prompt_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("\n")
        result = call(*DRAW, "--prompts", tmp_path / "empty.txt", "--out", tmp_path / "out")
        assert "is empty; it needs a prompt on each line" in refusal(result)

    @pytest.mark.parametrize("command", ["sample", "eval"])
    def test_an_output_that_cannot_be_written(
        self, tmp_path: Path, protocol: Path, command: str
    ) -> None:
        (tmp_path / "file").write_text("")
        start = DRAW if command == "sample" else ("eval", protocol, "--model", "fake")
        result = call(*start, "--out", tmp_path / "file" / "out")
        assert "cannot be written" in refusal(result)

    def test_a_folder_that_one_may_not_look_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import os

        secret, real = str(tmp_path / "secret"), os.stat

        def stat(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).startswith(secret):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **options)

        monkeypatch.setattr(os, "stat", stat)
        draw = ("sample", "--prompt", "a", "--out", tmp_path / "out")
        assert secret in refusal(call(*draw, "--model", f"{secret}/x"))

    def test_an_output_that_only_trying_shows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("flowopd.files.tempfile.TemporaryFile", full)
        result = call(*DRAW, "--out", tmp_path / "out")
        assert "cannot be written: No space left on device" in refusal(result)

    def test_an_adapter_of_another_model(self, tmp_path: Path, fake_adapter: Path) -> None:
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        for path in fake_adapter.iterdir():
            if path.name != "flowopd.json" and path.suffix != ".safetensors":
                (stranger / path.name).write_bytes(path.read_bytes())
        tensors = load_file(fake_adapter / "adapter_model.safetensors")
        wide = {key: t.repeat(1, 2) if "lora_A" in key else t for key, t in tensors.items()}
        save_file(wide, stranger / "adapter_model.safetensors")
        result = call(*DRAW, "--adapter", stranger, "--out", tmp_path / "out")
        assert "to_q" in refusal(result)

    def test_a_folder_that_is_no_pipeline(self, tmp_path: Path) -> None:
        for model in (tmp_path, tmp_path / "none"):
            result = call("sample", "--model", model, "--prompt", "a", "--out", tmp_path / "out")
            assert str(model) in refusal(result)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("stepz=3",), "Did you mean 'steps'?"),
            (("--adapter", "x"), "--adapter 'x' should be NAME=PATH"),
            (("--adapter", "a=x", "--adapter", "a=y"), "'a' is given twice"),
            (("--adapter", "a=x"), "No adapter at x"),
            (("scorers=[brite]",), "There is no scorer 'brite'. Did you mean 'bright'?"),
            (("--limit", "0"), "The key 'limit' is 0"),
        ],
    )
    def test_eval(self, tmp_path: Path, protocol: Path, arguments: Any, sentence: str) -> None:
        result = call("eval", protocol, "--model", "fake", "--out", tmp_path / "out", *arguments)
        assert sentence in refusal(result)
        assert not (tmp_path / "out").exists()


class TestSD3:
    """A tiny pipeline folder from end to end."""

    def test_pictures(self, tmp_path: Path, tiny_pipeline: Path) -> None:
        out = tmp_path / "out"
        result = call(
            "sample",
            *("--model", tiny_pipeline, "--prompt", "a cup", "--steps", 2, "--out", out),
            *("model.device=cpu", "model.dtype=fp32"),
        )
        assert result.exit_code == 0, result.output
        with Image.open(out / "00000_seed0_a-cup.png") as image:
            assert image.size == (64, 64)
        model = json.loads((out / "sample.json").read_text())["model"]
        assert model["name"] == str(tiny_pipeline)

    @pytest.mark.usefixtures("no_weights")
    def test_an_adapter_of_another_model(
        self, tmp_path: Path, tiny_pipeline: Path, fake_adapter: Path
    ) -> None:
        draw = ("sample", "--model", tiny_pipeline, "--prompt", "a cup", "--out", tmp_path / "out")
        assert "to_q" in refusal(call(*draw, "--adapter", fake_adapter))
        assert not (tmp_path / "out").exists()

    def test_a_text_cache_frees_the_encoders_and_changes_nothing(
        self, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flowopd.policy.sd3 import SD3Model

        dropped = []
        real = SD3Model.drop_text_encoders
        monkeypatch.setattr(
            SD3Model, "drop_text_encoders", lambda model: (dropped.append(model), real(model))
        )
        for name, options in (("plain", []), ("cached", [f"text_cache={tmp_path / 'cache'}"])):
            result = call(
                "sample",
                *("--model", tiny_pipeline, "--prompt", "a cup", "--steps", 2),
                *("--out", tmp_path / name, "model.device=cpu", "model.dtype=fp32", *options),
            )
            assert result.exit_code == 0, result.output
        assert len(dropped) == 1
        picture = "00000_seed0_a-cup.png"
        plain, cached = (
            np.frombuffer(pixels(tmp_path / name / picture), np.uint8).astype(int)
            for name in ("plain", "cached")
        )
        assert np.abs(plain - cached).max() <= 1  # prompts encoded in another batch
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # and the empty prompt

    @pytest.mark.usefixtures("no_weights")
    def test_an_adapter_of_other_weights(self, tmp_path: Path, tiny_pipeline: Path) -> None:
        """Its keys and shapes fit; the base that it was trained on has another fingerprint."""
        from flowopd.policy.bank import AdapterBank, Role
        from tiny_sd3 import tiny_transformer

        bank = AdapterBank(tiny_transformer(), base_name="another", fingerprint="0" * 64)
        bank.create("student", Role.STUDENT, rank=2, alpha=2, targets=("attn.to_q",))
        bank.save("student", tmp_path / "lora", metadata={}, lora_prefix="transformer")
        draw = ("sample", "--model", tiny_pipeline, "--prompt", "a cup", "--out", tmp_path / "out")
        assert "another" in refusal(call(*draw, "--adapter", tmp_path / "lora"))

    @pytest.mark.usefixtures("no_weights")
    def test_a_pipeline_that_is_not_whole(self, tmp_path: Path, tiny_pipeline: Path) -> None:
        part = tmp_path / "part"
        shutil.copytree(tiny_pipeline, part)
        (part / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        result = call("sample", "--model", part, "--prompt", "a cup", "--out", tmp_path / "out")
        assert "vae" in refusal(result)


class TestEval:
    def test_table_and_results(self, tmp_path: Path, protocol: Path, fake_adapter: Path) -> None:
        out = tmp_path / "out"
        result = call(
            "eval", protocol, "--model", "fake", "--out", out, "--adapter", f"m={fake_adapter}"
        )
        assert result.exit_code == 0, result.output
        assert "fake protocol" in result.stdout
        assert "missing)" in result.stdout
        rows = json.loads((out / "results.json").read_text())["rows"]
        assert [row["name"] for row in rows] == ["base", "m"]

    def test_dry_run(self, tmp_path: Path, protocol: Path) -> None:
        result = call("eval", protocol, "--model", "fake", "--out", tmp_path / "out", "--dry-run")
        assert result.exit_code == 0
        assert yaml.safe_load(result.stdout)["images_per_prompt"] == 2
        (tmp_path / "again.yaml").write_text(result.stdout)
        assert call("eval", tmp_path / "again.yaml", "--dry-run").stdout == result.stdout
        assert not (tmp_path / "out").exists()


class TestPluginCommands:
    def test_help_lists_them_without_importing_them(self) -> None:
        result = call("--help")
        assert result.exit_code == 0
        assert "fake" in result.stdout
        assert "broken" in result.stdout
        assert "no_such_module_here" not in sys.modules

    def test_a_group_runs_with_its_own_help(self) -> None:
        assert call("fake", "hello", "--name", "me").stdout == "hello me\n"
        assert "Fake commands." in call("fake", "--help").stdout

    def test_its_errors_end_as_ours_do(self) -> None:
        assert refusal(call("fake", "refuse")) == "flowopd: Refused."
        interrupted = call("fake", "interrupted")
        assert interrupted.exit_code == 130
        assert "interrupted" in interrupted.stderr

    def test_a_broken_group_breaks_itself_only(self) -> None:
        assert "no_such_module_here" in refusal(call("broken", "anything"))
        assert call("fake", "hello").exit_code == 0

    def test_as_a_module_with_its_version(self) -> None:
        command = [sys.executable, "-m", "flowopd", "--version"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert output.startswith("flowopd ")

    def test_an_unknown_command(self) -> None:
        result = call("smaple")
        assert result.exit_code == 2
        assert "Did you mean 'sample'" in result.stderr


class TestDoctor:
    def test_a_report(self) -> None:
        result = call("doctor")
        assert result.exit_code == 0, result.output
        for text in ("torch", "cores", "models: fake", "no_such_module_here", "usable"):
            assert text in result.stdout

    def test_as_json(self) -> None:
        facts = json.loads(call("doctor", "--json").stdout)
        assert facts["usable"] is True
        assert facts["cpu"]["threads"] >= 1
        assert facts["versions"]["python"].startswith("3.")
        problems = {plugin["name"]: plugin["problem"] for plugin in facts["plugins"]}
        assert problems["fake"] == ""
        assert "no_such_module_here" in problems["broken"]

    def test_no_model_is_not_usable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flowopd.plugins.found", lambda group: {})
        result = call("doctor")
        assert result.exit_code == 1
        assert "No model family can be used" in result.stderr

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flowopd.doctor.PACKAGES", ("torch", "no-such-package"))
        result = call("doctor")
        assert result.exit_code == 1
        assert "no-such-package is not installed" in result.stderr


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def refusal(result: Result) -> str:
    """What stderr says of bad input, on one line."""
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())
