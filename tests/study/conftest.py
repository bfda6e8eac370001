from pathlib import Path

import pytest
from studies import FakeTrain, write_study

from fakes import fake_adapter, fake_plugins, protocol

__all__ = ["fake_adapter", "fake_plugins", "protocol"]


@pytest.fixture
def study_file(protocol: Path) -> Path:
    """A study of fake trainings beside the fake protocol."""
    return write_study(protocol.parent / "study.yaml")


@pytest.fixture
def trained() -> FakeTrain:
    return FakeTrain()


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a report was asked for; none is written."""
    from flowopd.reporting import report

    asked: list[Path] = []
    monkeypatch.setattr(report, "write_report", lambda folder: asked.append(folder))
    return asked
