"""Which settings are named where a training does not fit; each has been planned."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import changed, config_of, data_for

from flowopd.planning.advice import CACHE, advise
from flowopd.planning.held import NETWORKS
from flowopd.planning.needs import Change, Item, Phase, PhaseNeed, StageNeeds, Work
from flowopd.training.config import TrainConfig

GIB = 2**30
Plan = Callable[[TrainConfig], StageNeeds]


def needs_of(total: float, phase: Phase = Phase.TRAIN, held: str = "") -> StageNeeds:
    """A stage whose peak, allowance included, is so many GiB."""
    nothing = PhaseNeed(phase, 0, 0).total
    need = PhaseNeed(phase, round(total * GIB) - nothing, 0)
    return StageNeeds(("it",), "train", Work(), [Item(held, 1)], [need])


def planned(config: TrainConfig) -> StageNeeds:
    """10 GiB of weights, 8 of text encoders, 2 for each picture of a pass, a tenth with
    checkpointing."""
    model: Any = config.model
    encoders = 0 if config.text_cache else 3 if model.t5 is False else 8
    each = 0.2 if model.gradient_checkpointing else 2
    return needs_of(10 + encoders + each * config.batch.micro)


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> TrainConfig:
    data = data_for(tiny_pipeline, tmp_path, {"name": "grpo"})
    return config_of(changed(data, {"batch.micro": 16, "model.t5": None}))


def advice(config: TrainConfig, memory: float, plan: Plan = planned) -> list[Change]:
    return advise(config, plan(config), round(memory * GIB), plan)


def in_gib(changes: list[Change]) -> dict[str, tuple[float, bool]]:
    return {one.settings: (round(one.peak / GIB, 3), one.fits) for one in changes}


def test_nothing_where_it_fits(config: TrainConfig) -> None:
    assert advice(config, 50) == []
    assert advice(config, 49.9) != []


def test_what_fits_on_its_own_comes_first(config: TrainConfig) -> None:
    assert in_gib(advice(config, 40)) == {
        "model.gradient_checkpointing: true": (21.2, True),
        "batch.micro: 8": (34.0, True),
        f"text_cache: {CACHE}": (42.0, False),
        "model.t5: false": (45.0, False),
    }


def test_passes_are_halved_until_they_fit(config: TrainConfig) -> None:
    assert "batch.micro: 2" in in_gib(advice(config, 24))


def test_several_together_where_none_is_enough_with_passes_as_large_as_they_may_be(
    config: TrainConfig,
) -> None:
    found = advice(config, 13)
    together = f"batch.micro: 8 and model.gradient_checkpointing: true and text_cache: {CACHE}"
    assert in_gib(found)[together] == (11.6, True)
    assert found[0].settings == together
    assert not any(change.fits for change in found[1:])


def test_it_is_said_when_nothing_is_enough(config: TrainConfig) -> None:
    found = advice(config, 9)
    assert found
    assert not any(change.fits for change in found)


def test_what_saves_nothing_is_not_named(config: TrainConfig) -> None:
    def flat(config: TrainConfig) -> StageNeeds:
        return needs_of(20 if config.text_cache is None else 19.99)

    assert advice(config, 10, flat) == []


def test_settings_are_named_where_they_could_matter(config: TrainConfig) -> None:
    data: Mapping[str, Any] = {"merged": True}
    merged = config.model_copy(update={"teachers": config.teachers.model_copy(update=data)})
    seen: list[TrainConfig] = []

    def plan(config: TrainConfig) -> StageNeeds:
        seen.append(config)
        return needs_of(30 - len(seen), Phase.DECODE, NETWORKS)

    named = {
        change.settings
        for change in advise(merged, needs_of(40, Phase.DECODE, NETWORKS), GIB, plan)
    }
    assert {"teachers.place: host", "teachers.merged: false", "model.vae_dtype: bf16"} <= named
    tried = {config.model.vae_dtype for config in seen}  # type: ignore[attr-defined]
    assert tried == {"fp32", "bf16"}
