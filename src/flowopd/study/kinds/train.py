"""Stages that train an adapter."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flowopd.study.config import Study
from flowopd.study.identity import Scorers, model_identity
from flowopd.study.kinds.kind import Made, Work, build_stage
from flowopd.study.names import ADAPTER
from flowopd.training.config import HOUSEKEEPING, TrainConfig, with_scales


class TrainKind:
    """The trainer: a teacher, a mix, a cold start, a student."""

    outputs: tuple[str, ...] = (f"{ADAPTER}/*",)
    everywhere = True

    def read(self, data: Mapping[str, Any], study: Study, name: str) -> TrainConfig:
        return build_stage(TrainConfig, data, study, f"stages.{name}.train")

    def check(self, config: TrainConfig, pending: Collection[Path]) -> None:
        from flowopd.training.run import prepare

        prepare(config, pending=pending)

    def covers(self, config: TrainConfig, scorers: Scorers) -> Any:
        """Of the scorers, those that a reward reads: others may come and go."""
        used = {metric for task in config.tasks.values() for metric in task.reward}
        found = [(spec, scorers.metrics(spec)) for spec in config.scorers]
        scales = {metric.name: metric.scale for _, metrics in found for metric in metrics}
        settings = config.model_dump(exclude=HOUSEKEEPING | {"model": True, "scorers": True})
        return {
            **with_scales(settings, scales),
            "scorers": [
                scorers.identity(spec)
                for spec, metrics in found
                if any(metric.name in used for metric in metrics)
            ],
            "model": model_identity(config.model),
        }

    def endless(self, config: TrainConfig, covers: Any) -> Any | None:
        if not config.endless:
            return None
        return {key: value for key, value in covers.items() if key != "updates"}

    def record(self, config: TrainConfig) -> dict[str, Any]:
        return config.model_dump(mode="json")

    def estimate(self, config: TrainConfig) -> Work:
        from flowopd.training.estimate import estimate

        found = estimate(config)
        return Work(found.images, found.forwards)

    def run(self, config: TrainConfig, folder: Path) -> Made:
        from flowopd.training.run import prepare, train

        outcome = train(prepare(config), folder)
        return Made(outcome.images, outcome.forwards, outcome.seconds)
