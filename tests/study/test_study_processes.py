"""Under a launcher: all processes do the same stages, one writes the study's files."""

import threading
from pathlib import Path
from typing import Any

import pytest
from studies import FakeTrain, fault, kinds, ran

from flowopd.errors import FlowOPDError
from flowopd.study import records
from flowopd.study.config import load_study
from flowopd.study.kinds import Made, MergeKind
from flowopd.study.plan import build_plan
from flowopd.study.runner import do_all

pytestmark = pytest.mark.usefixtures("fake_plugins")


class Member:
    """One of two processes, as a thread."""

    def __init__(self, barrier: threading.Barrier, main: bool) -> None:
        self.main, self._barrier = main, barrier

    def wait(self) -> None:
        self._barrier.wait(20)


class Joint(FakeTrain):
    """Every process trains; the main one saves."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []

    def run(self, config: Any, folder: Path) -> Made:
        name = threading.current_thread().name
        self.ran.append((name, folder.name))
        if name == "main":
            return super().run(config, folder)
        return Made(0, 0, 0.0)


def test_two_processes(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, merges, writers = Joint(), list[str](), set[str]()
    real_merge, real_write = MergeKind.run, records.write_atomic

    def merge(self: Any, config: Any, folder: Path) -> Made:
        merges.append(threading.current_thread().name)
        return real_merge(self, config, folder)

    def write(path: Path, content: str) -> None:
        writers.add(threading.current_thread().name)
        real_write(path, content)

    monkeypatch.setattr(MergeKind, "run", merge)
    monkeypatch.setattr(records, "write_atomic", write)
    folder = study_file.parent / "run"
    folder.mkdir()
    plan = build_plan(load_study(study_file), folder, kinds=kinds(train))
    todo = [plan.stages[name] for name in ("t-compose", "t-text", "merged", "opd")]
    barrier = threading.Barrier(2)

    def one(main: bool) -> None:
        do_all(plan, todo, Member(barrier, main))  # type: ignore[arg-type]

    other = threading.Thread(target=one, args=(False,), name="other")
    first = threading.Thread(target=one, args=(True,), name="main")
    for thread in (other, first):
        thread.start()
    for thread in (other, first):
        thread.join(60)
    assert ran(folder) == ["t-compose", "t-text", "opd"]
    for name in ("main", "other"):
        assert [stage for who, stage in train.ran if who == name] == ["t-compose", "t-text", "opd"]
    assert merges == ["main"]
    assert writers == {"main"}
    assert all((stage.folder / "done.json").exists() for stage in todo)


def test_a_failure_ends_all_processes(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for this one, so that going on with other stages is not possible."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = study_file.parent / "run"
    fault(folder, "t-text", "fail")
    plan = build_plan(load_study(study_file), folder, kinds=kinds())
    alone = Member(threading.Barrier(1), True)
    with pytest.raises(FlowOPDError, match="it went wrong"):
        do_all(plan, [plan.stages["t-text"]], alone)  # type: ignore[arg-type]
