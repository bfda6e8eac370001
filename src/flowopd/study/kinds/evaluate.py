"""Stages that evaluate the base, or an adapter."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.adapters import check_adapters
from flowopd.evaluation.protocol import EvalConfig, Job
from flowopd.evaluation.run import RESULTS, SCORES, evaluate, prepare
from flowopd.study.config import PanelConfig, Study
from flowopd.study.identity import Scorers, model_identity
from flowopd.study.kinds.kind import Made, Work
from flowopd.study.panel import PANEL, PANEL_RECORD, draw_panel, panel_size
from flowopd.training.ranks import start_team


@dataclass(frozen=True)
class EvaluateStage:
    """One row of the study's protocol: the base, or one adapter."""

    protocol: EvalConfig
    job: Job
    adapter: Path | None
    panel: PanelConfig | None


class EvaluateKind:
    outputs: tuple[str, ...] = (RESULTS, f"{SCORES}/*", PANEL_RECORD, f"{PANEL}/*")
    everywhere = True

    def read(self, data: Mapping[str, Any], study: Study, name: str) -> EvaluateStage:
        return EvaluateStage(**data)

    def check(self, config: EvaluateStage, pending: Collection[Path]) -> None:
        """The protocol has been checked once for all rows."""
        row = config.protocol.adapters
        check_adapters(
            config.protocol.model, {n: path for n, path in row.items() if path not in set(pending)}
        )

    def covers(self, config: EvaluateStage, scorers: Scorers) -> Any:
        return {
            "protocol": config.job.hash,
            "save_images": config.protocol.save_images,
            "panel": None if config.panel is None else config.panel.model_dump(),
            "model": model_identity(config.protocol.model),
            "adapter": config.adapter,
        }

    def endless(self, config: EvaluateStage, covers: Any) -> Any | None:
        return None

    def record(self, config: EvaluateStage) -> dict[str, Any]:
        panel = None if config.panel is None else config.panel.model_dump(mode="json")
        return {"protocol": config.protocol.model_dump(mode="json"), "panel": panel}

    def estimate(self, config: EvaluateStage) -> Work:
        protocol = config.protocol
        images = sum(config.job.counts) + panel_size(config.panel)
        return Work(images, images * protocol.steps * (1 if protocol.guidance == 1 else 2))

    def run(self, config: EvaluateStage, folder: Path) -> Made:
        start = time.monotonic()
        plan = prepare(config.protocol, job=config.job)
        team = start_team()
        evaluate(plan, base=config.adapter is None, team=team)
        if config.panel is not None and team.main:
            draw_panel(plan, config.panel, folder)
        return Made(*self.estimate(config), time.monotonic() - start)
