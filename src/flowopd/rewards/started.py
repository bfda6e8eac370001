"""Scorers by what names them, each started once."""

from collections.abc import Iterable
from typing import Any

from flowopd.rewards.scorer import MetricInfo
from flowopd.rewards.settings import ScorerSpec


class Started:
    """The same scorer for the same name and settings, however often it is asked for."""

    def __init__(self) -> None:
        self._started: dict[str, Any] = {}

    def get(self, spec: ScorerSpec) -> Any:
        key = spec.model_dump_json()
        if key not in self._started:
            self._started[key] = spec.load()
        return self._started[key]

    def all(self, specs: Iterable[ScorerSpec]) -> list[Any]:
        return [self.get(spec) for spec in specs]

    def metrics(self, spec: ScorerSpec) -> list[MetricInfo]:
        return list(self.get(spec).metrics)
