"""Stand-ins for the judges of SD3.5's recipes: their names, metrics and tasks, and no judgement."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from numpy.typing import NDArray

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

NAMES = ("geneval", "ocr", "pickscore", "deqa")


class Judge:
    """Gives every metric the picture's brightness, on the metric's scale."""

    version = 1
    grouped = False
    name: str
    metrics: tuple[MetricInfo, ...]
    tasks: frozenset[str] | None = None

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        levels = images.mean(axis=(1, 2, 3)) / 255
        return [
            Scores({info.name: float(level) * (info.high or 1.0) for info in self.metrics})
            for level in levels
        ]


class GenEval(Judge):
    name = "geneval"
    metrics = (MetricInfo("geneval", 0, 1, strata=True), MetricInfo("geneval_soft", 0, 1))
    tasks = frozenset({"geneval"})

    def check(self, record: PromptRecord) -> None:
        if "include" not in record.meta:
            raise FlowOPDError("it has no include.")


class OCR(Judge):
    name = "ocr"
    metrics = (MetricInfo("ocr", 0, 1),)
    tasks = frozenset({"ocr"})

    def check(self, record: PromptRecord) -> None:
        if record.prompt.count('"') < 2:
            raise FlowOPDError("it has no text between double quotes.")


class PickScore(Judge):
    name = "pickscore"
    metrics = (MetricInfo("pickscore", 0, 26),)


class DeQA(Judge):
    name = "deqa"
    metrics = (MetricInfo("deqa", 1, 5),)


CLASSES = {cls.name: cls.__name__ for cls in (GenEval, OCR, PickScore, DeQA)}


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four as plug-ins, in place of the real ones if they are installed."""
    _plugins(monkeypatch, {name: f"judges:{cls}" for name, cls in CLASSES.items()})


@pytest.fixture
def no_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without any of the four."""
    _plugins(monkeypatch, {})


def _plugins(monkeypatch: pytest.MonkeyPatch, judges: dict[str, str]) -> None:
    installed = plugins.found

    def found(group: plugins.Group) -> dict[str, EntryPoint]:
        points = {k: v for k, v in installed(group).items() if k not in NAMES}
        if group == "scorers":
            points |= {k: EntryPoint(k, v, "flowopd.scorers") for k, v in judges.items()}
        return points

    monkeypatch.setattr(plugins, "found", found)
