"""Which stages need the same: those that differ in names, prompts, rewards and numbers alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.experts import Experts
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.generate import SamplingConfig
from flowopd.policy.network import Expert
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.checks import anchor_adapter
from flowopd.training.config import TrainConfig

SHAPED = ("model", "student", "teachers", "rollout", "batch")
"""Keys of a training that say how large tensors are."""


def signature(
    config: TrainConfig,
    records: Mapping[str, Sequence[PromptRecord]],
    experts: Experts,
    probed: int,
) -> str:
    """Equal for trainings that hold the same on their devices; a probe has `probed` pictures."""
    shapes = _Shapes()
    paths = (config.start, anchor_adapter(config))
    others = [None if path is None else shapes.of(experts.of(path)) for path in paths]
    tasks = [
        [
            task.teacher and shapes.of(experts.of(task.teacher)),
            task.teacher_guidance,
            task.share,
            min(len(records[name]), config.batch.prompts),
        ]
        for name, task in config.tasks.items()
    ]
    facts: dict[str, Any] = {
        **config.model_dump(mode="json", include=set(SHAPED)),
        "algorithm": config.algorithm.model_dump(mode="json", exclude={"anchor": {"adapter"}}),
        "others": others,
        "tasks": tasks,
        "averaged": config.ema is not None,
        "compared": config.interference_every is not None,
        "cached": config.text_cache is not None,
        "probe": config.probe and config.probe.sampling.model_dump(mode="json"),
        "probed": min(probed, config.batch.micro),
    }
    return json.dumps(facts, sort_keys=True)


def sampling_signature(config: EvalConfig, expert: Expert | None, images: int) -> str:
    """Equal for evaluations that hold the same on their devices."""
    sampling = SamplingConfig.model_fields.keys() | {"model"}
    facts = config.model_dump(mode="json", include=set(sampling))
    shapes = None if expert is None else _Shapes().of(expert)
    cached, size = config.text_cache is not None, min(config.batch_size, images)
    return json.dumps([facts, shapes, cached, size], sort_keys=True)


class _Shapes:
    """What an adapter or a network is made of, and which are the same one."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, expert: Expert) -> list[Any]:
        number = self._seen.setdefault(expert.identity, len(self._seen))
        if isinstance(expert, AdapterFiles):
            return [number, expert.config.to_config()]
        return [number, dict(expert.config)]
