"""Several stages at a time: what runs together, what fails alone, who dies with whom."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import fault, kinds, ran

from flowopd.errors import FlowOPDError
from flowopd.study import workers
from flowopd.study.config import load_study
from flowopd.study.lifeline import end_with_parent
from flowopd.study.plan import Stage
from flowopd.study.run import run_study
from flowopd.study.workers import environment
from flowopd.training.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("fake_plugins", "no_report")
HERE = Path(__file__).parent


def command(folder: Path) -> workers.Command:
    start = (sys.executable, str(HERE / "study_worker.py"), str(folder / "study.yaml"), str(folder))

    def one(stage: Stage) -> list[str]:
        return [*start, stage.name, str(os.getpid())]

    return one


def run(file: Path, only: list[str], *overrides: str) -> None:
    folder = file.parent / "run"
    run_study(
        load_study(file, overrides),
        folder,
        only=only,
        jobs=2,
        kinds=kinds(),
        command=command(folder),
    )


TEACHERS = ["t-compose", "t-text"]


def test_ready_stages_run_together_and_a_failure_stops_what_stands_on_it(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, three = study_file.parent / "run", [*TEACHERS, "merged"]
    fault(folder, "t-text", "fail")
    with pytest.raises(FlowOPDError) as caught:
        run(study_file, three)
    log = folder / "stages/t-text/output.log"
    said = capsys.readouterr().err.splitlines()
    assert {line.partition(" (")[0] for line in said[:2]} == {f"{n}: started" for n in TEACHERS}
    assert f"  t-text: it went wrong. (see {log})" in str(caught.value)
    assert "  merged: it stands on t-text, which failed" in str(caught.value)
    assert "t-compose" not in str(caught.value)
    assert "it went wrong." in log.read_text()
    assert (folder / "stages/t-compose/done.json").exists()
    (folder / "faults/t-text").unlink()
    run(study_file, three)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in said] == ["t-text:"] * 2 + ["merged:"] * 2
    assert sorted(ran(folder)) == ["t-compose", "t-text", "t-text"]
    assert (folder / "stages/merged/done.json").exists()


def test_a_changed_stage_is_moved_aside_before_its_log_is_opened(study_file: Path) -> None:
    folder = study_file.parent / "run"
    run_study(load_study(study_file), folder, only=["t-text"], kinds=kinds())
    run(study_file, ["t-text"], "stages.t-text.train.seed=5")
    replaced = next(iter((folder / "replaced").iterdir()))
    assert not (replaced / "output.log").exists()
    assert (folder / "stages/t-text/output.log").exists()
    assert json.loads((folder / "stages/t-text/done.json").read_text())["images"] == 16


def test_a_signal_is_passed_on_and_waited_for(study_file: Path) -> None:
    folder = study_file.parent / "run"
    fault(folder, "t-text", "sleep")
    fault(folder, "t-compose", "sleep")
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    watcher = Watcher(folder)
    try:
        watcher.when_running(TEACHERS, signal.SIGALRM)
        with pytest.raises(Interrupted, match="the same command goes on from there"):
            run(study_file, [*TEACHERS, "merged"])
    finally:
        signal.signal(signal.SIGALRM, before)
        watcher.end()
    assert sorted(ran(folder)) == TEACHERS
    assert not list((folder / "stages").glob("*/done.json"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Watcher:
    """Sends this process a signal as soon as the trainings of stages are under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def when_running(self, stages: list[str], number: int) -> None:
        code = (
            "import os, sys, time; from pathlib import Path\n"
            "path, count, pid, number = Path(sys.argv[1]), *map(int, sys.argv[2:])\n"
            "while not path.exists() or len(path.read_text().split()) < count: time.sleep(0.05)\n"
            "os.kill(pid, number)"
        )
        numbers = [str(n) for n in (len(stages), os.getpid(), number)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.folder / "ran.txt"), *numbers]
        )

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


PARENT = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
import study_worker
from importlib.metadata import EntryPoint
from pathlib import Path
from fakes import POINTS
from flowopd import plugins
plugins.found = lambda group: {{
    n: EntryPoint(n, v, f"flowopd.{{group}}") for n, v in POINTS[group].items()
}}
from flowopd.study.config import load_study
from flowopd.study.run import run_study
from studies import kinds
from test_study_workers import command
folder = Path({folder!r})
run_study(load_study(Path({study!r})), folder, only=["t-text", "t-compose"], jobs=2, kinds=kinds(),
          command=command(folder))
"""


@pytest.fixture
def parent(study_file: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run in a process of its own, whose two trainings take long."""
    folder = study_file.parent / "run"
    for name in TEACHERS:
        fault(folder, name, "sleep")
    names = {"here": str(HERE), "tests": str(HERE.parent), "folder": str(folder)}
    code = PARENT.format(study=str(study_file), **names)
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(ran(folder)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_workers_die_with_a_killed_parent(
    study_file: Path, parent: "subprocess.Popen[bytes]"
) -> None:
    """And what they held is free for the next run, which does the rest."""
    folder = study_file.parent / "run"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(str(folder) in line for line in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for name in TEACHERS:
        (folder / "faults" / name).unlink()
    run_study(load_study(study_file), folder, only=TEACHERS, kinds=kinds())
    assert (folder / "stages/t-text/done.json").exists()


def command_lines() -> Iterator[str]:
    """Of the workers that live."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "study_worker.py" in text:
            yield text


def test_a_worker_without_its_parent_does_nothing() -> None:
    with pytest.raises(FlowOPDError, match="started this worker has ended"):
        end_with_parent(1 if os.getppid() != 1 else 2)


def test_cores_and_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    found = [environment(slot, 4) for slot in range(4)]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"1"}
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4", "5", "7", "4"]
    assert environment(0, 2)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "4"


def test_jobs_under_a_launcher(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FlowOPDError, match="use one of the two"):
        run(study_file, TEACHERS)
