"""`flowopd run` and `flowopd status` from outside."""

import json
from pathlib import Path
from typing import Any

import pytest
from studies import EVALS, ORDER, FakeTrain, fault, ran
from typer.testing import CliRunner, Result

from flowopd.cli import app
from flowopd.locks import locked
from flowopd.study import kinds as module
from flowopd.training.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("fake_plugins", "no_report")


@pytest.fixture(autouse=True)
def fake_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.KINDS, "train", FakeTrain())  # type: ignore[arg-type]


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def table(result: Result) -> dict[str, list[str]]:
    """The lines of a table by their first cell."""
    rows = [line.strip("│ ").split("│") for line in result.stdout.splitlines() if "│" in line]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


class TestRun:
    def test_a_study_and_its_table(self, study_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = call("run", study_file, "--out", out, "stages.opd.seeds=[0]")
        assert result.exit_code == 0, result.output
        rows = table(result)
        assert list(rows) == ["base", "t-compose", "opd"]
        assert rows["opd"][-2] == "48"
        assert str(out) in result.stdout
        assert json.loads((out / "results.json").read_text())["study"] == "tiny"
        again = call("run", out / "study.yaml", "--out", out)
        assert again.exit_code == 0, again.output
        assert "started" not in again.stderr

    def test_its_own_place(self, study_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        call("run", study_file, "--only", "t-text", "--only", "t-compose")
        assert ran(tmp_path / "runs" / "tiny") == ["t-compose", "t-text"]

    def test_a_dry_run(self, study_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = call("run", study_file, "--out", out, "--dry-run")
        assert result.exit_code == 0, result.output
        rows = table(result)
        assert list(rows) == [*ORDER, *EVALS, "to do"]
        assert rows["t-text"] == ["train", "–", "new", "16", "80"]  # 16 · (3 + 2)
        assert rows["merged"] == ["merge", "t-compose, t-text", "new", "–", "–"]
        assert rows["eval.opd"][:4] == ["evaluate", "opd", "new", "18"]
        assert rows["to do"][3] == str(4 * 16 + 4 * 18)
        assert not out.exists()
        call("run", study_file, "--out", out, "--only", "t-text")
        rows = table(call("run", study_file, "--out", out, "--dry-run"))
        assert rows["t-text"][2] == "done"
        assert rows["to do"][3] == str(3 * 16 + 4 * 18)

    def test_failures(self, study_file: Path, tmp_path: Path) -> None:
        fault(tmp_path / "out", "t-text", "fail")
        result = call("run", study_file, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "flowopd: 6 stages were not done" in result.stderr
        assert "  t-text: it went wrong." in result.stderr

    def test_an_interruption(self, study_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
        def interrupted(*_: Any) -> None:
            raise Interrupted("ended by SIGTERM")

        monkeypatch.setattr(FakeTrain, "run", interrupted)
        result = call("run", study_file, "--out", tmp_path / "out")
        assert result.exit_code == 130
        assert "flowopd: ended by SIGTERM" in result.stderr
        assert not (tmp_path / "out/results.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("train.updats=3",), "Did you mean"),
            (("--jobs", "0"), "--jobs"),
            (("--only", "opt"), "Did you mean 'opd'?"),
        ],
    )
    def test_bad_input(
        self, study_file: Path, tmp_path: Path, arguments: Any, sentence: str
    ) -> None:
        result = call("run", study_file, "--out", tmp_path / "out", *arguments)
        assert result.exit_code == 2
        assert sentence in " ".join(result.stderr.split())
        assert not (tmp_path / "out").exists()

    def test_no_file(self) -> None:
        assert "Which study? Give its file" in call("run", "a.b=1").stderr


class TestStatus:
    def test_of_a_run_and_of_a_study(self, study_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        call("run", study_file, "--out", out, "--only", "t-text", "--only", "t-compose")
        before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
        for result in (call("status", out), call("status", study_file, "--out", out)):
            assert result.exit_code == 0, result.output
            rows = table(result)
            assert list(rows) == [*ORDER, *EVALS, "taken"]
            assert rows["t-text"] == ["train", "–", "done", "4/4", "16", "2"]
            assert rows["merged"][2:] == ["new", "–", "–", "–"]
            assert rows["taken"][-2:] == ["32", "4"]
        assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before

    def test_what_is_stale_and_what_is_under_way(self, study_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        fault(out, "opd", "half")
        call("run", study_file, "--out", out)
        (out / "stages/opd/log.jsonl").write_text(
            '{"update": 2, "images": 8, "seconds": 1.0}\n'
            '{"update": 3, "images": 12, "seconds": 9.0}\n{"u'
        )
        rows = table(call("status", out))
        assert rows["opd"][2:] == ["resume at update 2", "3/4", "12", "9"]
        assert rows["merged"][2] == "done"
        rows = table(call("status", study_file, "stages.t-text.train.seed=5", "--out", out))
        states = {name: row[2] for name, row in rows.items()}
        assert states["t-text"] == "changed"
        assert states["merged"] == "changed with t-text"
        assert states["opd"] == "changed with t-text"
        assert states["t-compose"] == "done"

    def test_who_is_at_work(self, study_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        call("run", study_file, "--out", out, "--only", "t-text")
        assert "at work" not in call("status", out).stdout
        with locked(out / ".lock", "It"):
            assert "process " in call("status", out).stdout.splitlines()[-1]

    def test_bad_input(self, study_file: Path, tmp_path: Path) -> None:
        result = call("status", tmp_path)
        assert result.exit_code == 2
        assert "it has no study.yaml" in result.stderr
        assert "neither a configuration" in call("status", tmp_path / "none").stderr
