"""What a plan leaves out, in sentences."""

from flowopd.evaluation.protocol import EvalConfig
from flowopd.training.config import TrainConfig


def of_training(config: TrainConfig) -> list[str]:
    scorers = list(dict.fromkeys([*_rewarding(config), *_probing(config)]))
    return [*_scorers(scorers), *_cache(config.text_cache is not None), *_compiled(config)]


def of_evaluation(config: EvalConfig) -> list[str]:
    return [
        *_scorers([spec.name for spec in config.scorers]),
        *_cache(config.text_cache is not None),
    ]


def _rewarding(config: TrainConfig) -> list[str]:
    used = any(task.reward for task in config.tasks.values())
    return [spec.name for spec in config.scorers] if used else []


def _probing(config: TrainConfig) -> list[str]:
    return [spec.name for spec in config.probe.scorers] if config.probe else []


def _scorers(names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"What the scorers use of a device themselves is not counted: {', '.join(names)}."]


def _cache(cached: bool) -> list[str]:
    if not cached:
        return []
    return ["Where the text cache has every prompt already, no text encoder is loaded."]


def _compiled(config: TrainConfig) -> list[str]:
    if not getattr(config.model, "compile", False):
        return []
    return ["Activations are those of uncompiled blocks; compiled ones keep fewer."]
