"""Which settings would make a training fit: each is tried by planning with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.config import Config
from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.held import NETWORKS
from flowopd.planning.needs import Change, Phase, StageNeeds
from flowopd.training.config import TrainConfig

Plan = Callable[[Any], StageNeeds]
"""What a changed configuration needs."""
LEAST = 0.01
"""The share of the peak that a change has to save to be worth naming."""
CACHE = Path("cache/text")
MICRO, BATCH_SIZE = "batch.micro", "batch_size"


@dataclass(frozen=True)
class Tried:
    """Settings by key, and the peak with them."""

    settings: Mapping[str, Any]
    peak: int

    def change(self, memory: int) -> Change:
        words = [f"{key}: {_yaml(value)}" for key, value in self.settings.items()]
        return Change(" and ".join(words), self.peak, self.peak <= memory)


def advise(config: TrainConfig, needs: StageNeeds, memory: int, plan: Plan) -> list[Change]:
    """What would fit, each on its own; if nothing does, several together."""
    worst = needs.worst
    if worst is None or worst.total <= memory:
        return []
    tried = [_halved(config, MICRO, config.batch.micro, memory, plan)]
    tried += [_tried(config, settings, plan) for settings in _alternatives(config, needs)]
    useful = [one for one in tried if one and one.peak <= (1 - LEAST) * worst.total]
    useful.sort(key=lambda one: (one.peak > memory, one.peak))
    if useful and useful[0].peak > memory and len(useful) > 1:
        useful.insert(0, _together(config, useful, memory, plan))
    return [one.change(memory) for one in useful]


def advise_evaluation(
    config: EvalConfig, needs: StageNeeds, memory: int, plan: Plan
) -> list[Change]:
    """Fewer pictures at once."""
    worst = needs.worst
    if worst is None or worst.total <= memory:
        return []
    found = _halved(config, BATCH_SIZE, config.batch_size, memory, plan)
    return [] if found is None else [found.change(memory)]


def _halved(config: Config, key: str, size: int, memory: int, plan: Plan) -> Tried | None:
    """Half as many pictures at once, or a quarter, ... until it fits."""
    found = None
    while size > 1:
        size //= 2
        found = _tried(config, {key: size}, plan)
        if found.peak <= memory:
            break
    return found


def _alternatives(config: TrainConfig, needs: StageNeeds) -> Iterator[dict[str, Any]]:
    """Settings that lower what some phase needs."""
    model, worst = config.model, needs.worst
    assert worst is not None
    encoders_stay = config.text_cache is None
    if getattr(model, "gradient_checkpointing", True) is False:
        yield {"model.gradient_checkpointing": True}
    if encoders_stay:
        yield {"text_cache": CACHE}
    if getattr(model, "t5", False) is not False and (encoders_stay or worst.phase is Phase.ENCODE):
        yield {"model.t5": False}
    drawn = (Phase.DECODE, Phase.PROBE)
    if getattr(model, "vae_dtype", None) == "fp32" and worst.phase in drawn:
        yield {"model.vae_dtype": "bf16"}
    if config.teachers.place == "device" and any(item.name == NETWORKS for item in needs.held):
        yield {"teachers.place": "host"}
    if config.teachers.merged:
        yield {"teachers.merged": False}


def _together(config: TrainConfig, tried: Sequence[Tried], memory: int, plan: Plan) -> Tried:
    """One after the other, what saves most first, until it fits."""
    settings: dict[str, Any] = {}
    found = tried[0]
    for one in tried:
        settings |= one.settings
        found = _tried(config, dict(settings), plan)
        if found.peak <= memory:
            return _with_larger_passes(config, found, memory, plan)
    return found


def _with_larger_passes(config: TrainConfig, found: Tried, memory: int, plan: Plan) -> Tried:
    """What was tried last may allow for more pictures in a pass than what was tried first."""
    while 2 * found.settings.get(MICRO, config.batch.micro) <= config.batch.micro:
        larger = {**found.settings, MICRO: 2 * found.settings[MICRO]}
        tried = _tried(config, larger, plan)
        if tried.peak > memory:
            break
        found = tried
    unchanged = found.settings.get(MICRO) == config.batch.micro
    return Tried(
        {k: v for k, v in found.settings.items() if not (unchanged and k == MICRO)}, found.peak
    )


def _tried(config: Config, settings: Mapping[str, Any], plan: Plan) -> Tried:
    for key, value in settings.items():
        config = _with(config, key.split("."), value)
    worst = plan(config).worst
    assert worst is not None
    return Tried(settings, worst.total)


def _with(config: Any, keys: Sequence[str], value: Any) -> Any:
    assert isinstance(config, Config)
    if len(keys) > 1:
        value = _with(getattr(config, keys[0]), keys[1:], value)
    return config.model_copy(update={keys[0]: value})


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
