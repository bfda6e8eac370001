"""Running a study: once, resumed, changed, tampered with, killed, and looked at."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studies import EVALS, ORDER, fault, kinds, ran, save_adapter

from fakes import FakeModel
from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.locks import locked
from flowopd.study import records
from flowopd.study.config import load_study
from flowopd.study.plan import Plan
from flowopd.study.records import State
from flowopd.study.run import checked, run_study, states
from flowopd.study.table import state_text

pytestmark = pytest.mark.usefixtures("fake_plugins", "no_report")


def run(file: Path, *overrides: str, only: list[str] | None = None) -> Plan:
    folder = file.parent / "run"
    return run_study(load_study(file, overrides), folder, only=only or [], kinds=kinds())


def texts(file: Path, *overrides: str) -> dict[str, str]:
    plan, found, _ = checked(load_study(file, overrides), file.parent / "run", kinds=kinds())
    return {name: state_text(stage, plan, found) for name, stage in plan.stages.items()}


@pytest.fixture
def folder(study_file: Path) -> Path:
    """A study that has been run to its end."""
    run(study_file)
    return study_file.parent / "run"


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with what would change if it were written again."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestOnce:
    def test_every_stage_is_done_and_recorded(self, folder: Path, no_report: list[Path]) -> None:
        assert ran(folder) == ["t-compose", "t-text", "opd", "opd.s3"]
        assert sorted(path.name for path in (folder / "stages").iterdir()) == sorted(ORDER + EVALS)
        record = json.loads((folder / "stages/opd.s3/stage.json").read_text())
        assert list(record) == ["name", "kind", "identity", "course", "config", "needs"]
        assert (record["name"], record["kind"]) == ("opd.s3", "train")
        assert record["config"]["seed"] == 3
        assert record["needs"] == ["t-compose", "t-text", "merged"]
        done = json.loads((folder / "stages/opd.s3/done.json").read_text())
        assert list(done) == ["identity", "images", "forwards", "seconds", "outputs"]
        assert done["identity"] == record["identity"]
        assert (done["images"], done["forwards"], done["seconds"]) == (16, 48, 2.0)
        assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= set(
            done["outputs"]
        )
        merged = json.loads((folder / "stages/merged/done.json").read_text())
        assert "merge.json" in merged["outputs"]
        assert no_report == [folder]

    def test_an_evaluation_has_one_row_and_a_panel(self, folder: Path) -> None:
        for stage, row in (("eval.base", "base"), ("eval.opd.s3", "opd.s3")):
            place = folder / "stages" / stage
            rows = json.loads((place / "results.json").read_text())["rows"]
            assert [entry["name"] for entry in rows] == [row]
            assert [path.name for path in (place / "scores").iterdir()] == [f"{row}.jsonl"]
            panel = json.loads((place / "panel.json").read_text())
            assert panel[1] == {"prompt": "a cup", "seed": 1, "file": "panel/01.png"}
            assert [entry["file"] for entry in panel] == [f"panel/0{n}.png" for n in range(4)]
            outputs = json.loads((place / "done.json").read_text())["outputs"]
            assert set(outputs) == {
                "results.json",
                f"scores/{row}.jsonl",
                "panel.json",
                *(entry["file"] for entry in panel),
            }
        pictures = {
            (folder / "stages" / stage / "panel/00.png").read_bytes()
            for stage in ("eval.base", "eval.t-compose", "eval.opd")
        }
        assert len(pictures) == 3

    def test_nothing_is_done_twice(self, study_file: Path, folder: Path) -> None:
        before = files(folder / "stages")
        run(study_file)
        assert files(folder / "stages") == before
        assert len(ran(folder)) == 4

    def test_a_dry_run_writes_nothing(self, study_file: Path) -> None:
        assert set(texts(study_file).values()) == {"new"}
        assert not (study_file.parent / "run").exists()

    def test_only_some_stages_and_what_they_need(self, study_file: Path) -> None:
        run(study_file, only=["merged"])
        folder = study_file.parent / "run"
        assert ran(folder) == ["t-compose", "t-text"]
        assert not (folder / "stages/eval.base").exists()
        assert json.loads((folder / "results.json").read_text())["rows"] == []
        run(study_file, only=["eval.opd"])
        assert ran(folder)[2:] == ["opd", "opd.s3"]
        rows = json.loads((folder / "results.json").read_text())["rows"]
        assert [row["name"] for row in rows] == ["opd"]

    def test_only_one_seed(self, study_file: Path) -> None:
        run(study_file, only=["opd.s3"])
        assert ran(study_file.parent / "run") == ["t-compose", "t-text", "opd.s3"]

    def test_only_a_stage_that_is_none(self, study_file: Path) -> None:
        with pytest.raises(
            FlowOPDError, match=r"no stage of this study\. Did you mean 'eval\.base'"
        ):
            run(study_file, only=["eval.bas"])
        assert not (study_file.parent / "run").exists()


class TestAgain:
    def test_a_changed_stage_and_what_stands_on_it(self, study_file: Path, folder: Path) -> None:
        old = json.loads((folder / "stages/opd/stage.json").read_text())["identity"]
        before = files(folder / "stages")
        change = "stages.opd.train.optimizer.lr=1e-3"
        found = texts(study_file, change)
        assert {n for n, text in found.items() if text != "done"} == {
            "opd",
            "opd.s3",
            "eval.opd",
            "eval.opd.s3",
        }
        assert (found["opd"], found["eval.opd"]) == ("changed", "changed with opd")
        run(study_file, change)
        assert ran(folder)[4:] == ["opd", "opd.s3"]
        replaced = folder / "replaced" / f"opd-{old[:8]}"
        assert json.loads((replaced / "done.json").read_text())["identity"] == old
        after = files(folder / "stages")
        same = [name for name in before if after.get(name) == before[name]]
        assert {name.split("/")[0] for name in same} == {
            "t-compose",
            "t-text",
            "merged",
            "eval.base",
            "eval.t-compose",
        }

    def test_replaced_stages_do_not_replace_each_other(
        self, study_file: Path, folder: Path
    ) -> None:
        for change in ("train.optimizer.lr=1", "train.optimizer.lr=3e-4", "train.optimizer.lr=1"):
            run(study_file, change, only=["t-text"])
        names = sorted(path.name for path in (folder / "replaced").iterdir())
        assert len(names) == 3
        assert names[1] == f"{names[0]}-2" or names[2] == f"{names[1]}-2"

    def test_a_stage_whose_folder_was_deleted(self, study_file: Path, folder: Path) -> None:
        shutil.rmtree(folder / "stages/t-text")
        run(study_file)
        assert ran(folder)[4:] == ["t-text"]
        assert not (folder / "replaced").exists()

    def test_a_folder_of_something_else_is_moved_aside(self, study_file: Path) -> None:
        strange = study_file.parent / "run/stages/t-text"
        strange.mkdir(parents=True)
        (strange / "notes.txt").write_text("mine")
        assert texts(study_file)["t-text"] == "changed"
        run(study_file, only=["t-text"])
        kept = study_file.parent / "run/replaced/t-text-unknown/notes.txt"
        assert kept.read_text() == "mine"

    def test_housekeeping_changes_redo_nothing(self, study_file: Path, folder: Path) -> None:
        run(study_file, "train.checkpoint.every=3", "report={title: x}")
        assert len(ran(folder)) == 4

    def test_another_study_is_not_overwritten(self, study_file: Path, folder: Path) -> None:
        with pytest.raises(FlowOPDError, match="holds the study 'tiny', and this one is 'other'"):
            run(study_file, "name=other")

    def test_a_study_file_is_not_overwritten(self, study_file: Path) -> None:
        before = study_file.read_text()
        with pytest.raises(FlowOPDError, match="a run there would overwrite"):
            run_study(load_study(study_file), study_file.parent, kinds=kinds())
        assert study_file.read_text() == before

    def test_results_of_something_else_are_not_overwritten(self, study_file: Path) -> None:
        folder = study_file.parent / "run"
        folder.mkdir()
        (folder / "results.json").write_text('{"protocol": {}, "rows": []}')
        with pytest.raises(FlowOPDError, match="is of something else"):
            run(study_file)


class TestTampering:
    @pytest.mark.parametrize("how", ["changed", "cut", "missing"])
    def test_an_adapter_that_is_not_what_was_written(
        self, study_file: Path, folder: Path, how: str
    ) -> None:
        weights = folder / "stages/t-text/adapter/adapter_model.safetensors"
        if how == "changed":
            save_adapter(weights.parent, 99)
        elif how == "cut":
            weights.write_bytes(weights.read_bytes()[:-10])
        else:
            weights.unlink()
        count = len(ran(folder))
        with pytest.raises(FlowOPDError) as caught:
            run(study_file, "stages.opd.train.optimizer.lr=1e-3")
        assert "The stage 't-text' is done, but" in str(caught.value)
        assert f"delete the folder {folder / 'stages/t-text'}" in str(caught.value)
        assert len(ran(folder)) == count
        shutil.rmtree(folder / "stages/t-text")
        run(study_file, "stages.opd.train.optimizer.lr=1e-3")
        assert ran(folder)[count:] == ["t-text", "opd", "opd.s3"]

    def test_between_the_check_and_the_use(
        self, study_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is damaged while the study runs stops the stages that would use it."""
        from flowopd.study.kinds import MergeKind

        def damage(self: Any, config: Any, folder: Path) -> Any:
            (folder.parent / "t-text/adapter/adapter_config.json").write_text("{}")
            return real(self, config, folder)

        real = MergeKind.run
        monkeypatch.setattr(MergeKind, "run", damage)
        with pytest.raises(FlowOPDError, match=r"merged: .*adapter_config\.json"):
            run(study_file)

    def test_scores_that_were_edited(self, study_file: Path, folder: Path) -> None:
        scores = folder / "stages/eval.opd/scores/opd.jsonl"
        scores.write_text(scores.read_text().replace('"level": 0.', '"level": 0.9'))
        with pytest.raises(FlowOPDError, match=r"The stage 'eval\.opd' is done, but"):
            run(study_file)

    @pytest.mark.parametrize("content", ["", "[]", "not json", '{"identity": 1}'])
    def test_a_done_record_that_is_damaged(
        self, study_file: Path, folder: Path, content: str
    ) -> None:
        (folder / "stages/opd/done.json").write_text(content)
        assert texts(study_file)["opd"] == "resume at update 4"
        run(study_file)
        assert ran(folder)[4:] == ["opd"]


class TestFailures:
    def test_what_does_not_stand_on_it_is_done(
        self, study_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = study_file.parent / "run"
        fault(folder, "t-text", "fail")
        with pytest.raises(FlowOPDError) as caught:
            run(study_file)
        sentence = str(caught.value)
        assert "  t-text: it went wrong." in sentence
        assert "  merged: it stands on t-text, which failed" in sentence
        assert "  eval.opd: it stands on opd, which failed" in sentence
        assert ran(folder) == ["t-compose", "t-text"]
        rows = json.loads((folder / "results.json").read_text())["rows"]
        assert [row["name"] for row in rows] == ["base", "t-compose"]
        assert "t-text: failed: it went wrong." in capsys.readouterr().err
        (folder / "faults/t-text").unlink()
        run(study_file)
        assert ran(folder)[2:] == ["t-text", "opd", "opd.s3"]

    def test_a_stage_that_was_stopped_goes_on_in_its_folder(self, study_file: Path) -> None:
        folder = study_file.parent / "run"
        fault(folder, "opd", "half")
        with pytest.raises(KeyboardInterrupt):
            run(study_file)
        assert texts(study_file)["opd"] == "resume at update 2"
        run(study_file)
        assert ran(folder) == ["t-compose", "t-text", "opd", "opd", "opd.s3"]
        assert (folder / "stages/opd/checkpoints/update-00000002").is_dir()
        assert not (folder / "replaced").exists()


class TestMoreUpdates:
    """Of one training, `opd`, on which the evaluation of its row stands."""

    def test_a_finished_training_goes_on(
        self, study_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change = "stages.opd.train.updates=6"
        found = texts(study_file, change)
        assert found["opd"] == "resume at update 4"
        assert found["eval.opd"] == "changed with opd"
        run(study_file, change)
        assert (folder / "stages/opd/checkpoints/update-00000004").is_dir()
        assert json.loads((folder / "stages/opd/done.json").read_text())["images"] == 24
        replaced = sorted(path.name for path in (folder / "replaced").iterdir())
        assert [name.rpartition("-")[0] for name in replaced] == ["eval.opd", "eval.opd.s3"]
        said = capsys.readouterr().err
        assert f"eval.opd: what was there is of other settings; it is now {folder}" in said
        assert texts(study_file, change)["opd"] == "done"

    def test_fewer_than_it_has_are_another_training(self, study_file: Path, folder: Path) -> None:
        assert texts(study_file, "stages.opd.train.updates=3")["opd"] == "changed"

    @pytest.mark.parametrize("updates", [3, 6])
    def test_a_finished_one_without_checkpoints_is_kept(
        self, study_file: Path, folder: Path, updates: int
    ) -> None:
        shutil.rmtree(folder / "stages/t-text/checkpoints")
        done = (folder / "stages/t-text/done.json").read_bytes()
        run(study_file, f"stages.t-text.train.updates={updates}", only=["t-text"])
        (kept,) = (folder / "replaced").iterdir()
        assert (kept / "done.json").read_bytes() == done
        assert (kept / "adapter").is_dir()

    def test_a_stopped_one_may_end_where_it_is(self, study_file: Path) -> None:
        fault(study_file.parent / "run", "opd", "half")
        with pytest.raises(KeyboardInterrupt):
            run(study_file)
        assert texts(study_file, "stages.opd.train.updates=2")["opd"] == "resume at update 2"
        assert texts(study_file, "stages.opd.train.updates=1")["opd"] == "changed"

    def test_with_a_decay_it_is_another_training(self, study_file: Path) -> None:
        decay = "stages.opd.train.optimizer.decay=cosine"
        run(study_file, decay)
        assert texts(study_file, decay)["opd"] == "done"
        assert texts(study_file, decay, "stages.opd.train.updates=6")["opd"] == "changed"


class TestLocks:
    @contextmanager
    def held(self, path: Path) -> Iterator[int]:
        """By another process."""
        code = (
            "import sys; from pathlib import Path; from flowopd.locks import locked\n"
            "with locked(Path(sys.argv[1]), 'x'): print(flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", code, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()

    def test_one_run_at_a_time(self, study_file: Path) -> None:
        folder = study_file.parent / "run"
        with self.held(folder / ".lock") as pid:
            with pytest.raises(FlowOPDError, match=f"is being worked on by process {pid}"):
                run(study_file)
            assert ran(folder) == []
        run(study_file, only=["t-text"])

    def test_one_process_a_stage(self, study_file: Path) -> None:
        folder = study_file.parent / "run"
        with (
            self.held(folder / ".locks" / "t-text") as pid,
            pytest.raises(FlowOPDError, match=f"The stage 't-text' is being .* process {pid}"),
        ):
            run(study_file, only=["t-text"])
        assert ran(folder) == []

    def test_a_lock_ends_with_its_holder(self, tmp_path: Path) -> None:
        for _ in range(2):
            with locked(tmp_path / "lock", "It"):
                assert (tmp_path / "lock").read_text() == str(os.getpid())


class KilledError(BaseException):
    """Ends a run as kill -9 does: nothing is put in order on the way out."""


@pytest.mark.parametrize(
    ("key", "moved"), [("optimizer.lr=1e-3", ["merged", "t-text"]), ("updates=5", ["merged"])]
)
def test_killed_between_any_two_file_operations(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, key: str, moved: list[str]
) -> None:
    """At every step that makes, renames or writes something, the next run ends as if uninterrupted.

    A kill runs no `finally`, so that what a writer would tidy up stays lying around. With the
    settings of before, what comes out is what was there before.
    """
    place, whole = study_file.parent, study_file.parent / "whole"
    before = run_study(load_study(study_file), place / "before", only=FIRST, kinds=kinds()).folder
    change = f"stages.t-text.train.{key}"

    def one(out: Path, *changes: str) -> Plan:
        return run_study(load_study(study_file, changes), out, only=FIRST, kinds=kinds())

    shutil.copytree(before, whole)
    one(whole, change)
    expected, steps, killed = outputs(whole), 0, True
    while killed:
        steps += 1
        folder = place / f"run-{steps}"
        shutil.copytree(before, folder)
        with monkeypatch.context() as patched:
            killer = Killer(patched, steps)
            try:
                one(folder, change)
                killed = False
            except KilledError:
                killer.leave_traces()
        back = place / f"back-{steps}"
        shutil.copytree(folder, back)
        found = states(one(folder, change))
        assert all(found[name].state is State.DONE for name in FIRST)
        assert outputs(folder) == expected, f"after step {steps}"
        replaced = sorted(path.name.rpartition("-")[0] for path in (folder / "replaced").iterdir())
        assert replaced == moved, f"after step {steps}"
        assert ran(folder)[2:3] == ["t-text"]
        one(back)
        assert outputs(back) == written(back) == outputs(before), f"back after step {steps}"
    assert steps > 15


def written(folder: Path) -> dict[str, Any]:
    """What is there, whatever its record says."""
    found = sorted((folder / "stages").glob("*/adapter/adapter_model.safetensors"))
    return {path.parent.parent.name: sha256(path) for path in found}


FIRST = ["t-compose", "t-text", "merged"]


def outputs(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())["outputs"][
            "adapter/adapter_model.safetensors"
        ]
        for path in sorted((folder / "stages").glob("*/done.json"))
    }


class Killer:
    """Ends the process before the n-th file operation of the study's records."""

    def __init__(self, patched: pytest.MonkeyPatch, steps: int) -> None:
        self.left = steps
        self.traces: list[Path] = []
        real_write, real_rename, real_mkdir = records.write_atomic, Path.rename, Path.mkdir

        def write(path: Path, content: str) -> None:
            self.step(path)
            real_write(path, content)

        def rename(path: Path, target: Path) -> Path:
            self.step()
            return real_rename(path, target)

        def mkdir(path: Path, *args: Any, **options: Any) -> None:
            self.step()
            real_mkdir(path, *args, **options)

        patched.setattr(records, "write_atomic", write)
        patched.setattr("flowopd.study.run.write_atomic", write)
        patched.setattr("flowopd.study.results.write_atomic", write)
        patched.setattr(Path, "rename", rename)
        patched.setattr(Path, "mkdir", mkdir)

    def step(self, written: Path | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            if written is not None:
                self.traces.append(written)
            raise KilledError

    def leave_traces(self) -> None:
        """The half-written temporary file that a killed writer leaves beside its target."""
        for path in self.traces:
            (path.parent / f".{path.name}.abc").write_text('{"half')


def test_evaluations_go_on_where_they_were(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed among the pictures: those that are scored are not drawn again."""
    from flowopd.evaluation import drawing as module

    real, drawn = module.generate, list[str]()

    def generate(model: FakeModel, prompts: list[str], *args: Any, **options: Any) -> Any:
        drawn.extend(prompts)
        for number, batch in enumerate(real(model, prompts, *args, **options)):
            if len(drawn) == 14 and number == 3:
                raise KilledError
            yield batch

    monkeypatch.setattr(module, "generate", generate)
    with pytest.raises(KilledError):
        run(study_file, only=["eval.base"])
    run(study_file, only=["eval.base"])
    assert 14 < len(drawn) < 28
    scores = study_file.parent / "run/stages/eval.base/scores/base.jsonl"
    assert len(scores.read_text().splitlines()) == 14
