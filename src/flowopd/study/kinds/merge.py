"""Stages that merge adapters."""

import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from flowopd.adapters import check_loras
from flowopd.config import AdapterPath
from flowopd.merging import RECORD, MergeConfig, check_merge, check_weights, merge
from flowopd.models import ModelField
from flowopd.policy.adapter_files import read_adapter
from flowopd.study.config import Study
from flowopd.study.identity import Scorers
from flowopd.study.kinds.kind import Made, Work, build_stage
from flowopd.study.names import ADAPTER


class MergeStage(MergeConfig):
    """Adapters with their weights, and how they are merged."""

    model: ModelField
    adapters: dict[AdapterPath, float] = Field(min_length=1)


class MergeKind:
    outputs: tuple[str, ...] = (f"{ADAPTER}/*", RECORD)
    everywhere = False

    def read(self, data: Mapping[str, Any], study: Study, name: str) -> MergeStage:
        own = {**data, "model": study.config.model}
        return build_stage(MergeStage, own, study, f"stages.{name}.merge")

    def check(self, config: MergeStage, pending: Collection[Path]) -> None:
        """Adapters that are all there are held against each other, too."""
        weights = list(config.adapters.values())
        check_weights(weights, len(weights), config)
        there = {str(path): path for path in config.adapters if path not in set(pending)}
        found = check_loras(config.model, there)
        if len(there) == len(weights):
            check_merge(list(found.values()), weights, config)

    def covers(self, config: MergeStage, scorers: Scorers) -> Any:
        return {"adapters": config.adapters, **config.options(), "any_sum": config.any_sum}

    def endless(self, config: MergeStage, covers: Any) -> Any | None:
        return None

    def record(self, config: MergeStage) -> dict[str, Any]:
        return config.model_dump(mode="json", exclude={"model"})

    def estimate(self, config: MergeStage) -> Work:
        return Work()

    def run(self, config: MergeStage, folder: Path) -> Made:
        start = time.monotonic()
        adapters = [read_adapter(path) for path in config.adapters]
        found = merge(adapters, list(config.adapters.values()), config)
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        found.save(folder / ADAPTER, folder / RECORD)
        return Made(0, 0, time.monotonic() - start)
