"""The recipe of the base model."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, field_validator, model_validator

from flowopd.config import Config
from flowopd.world.grammar import TAGS

CROWDED = ("two_object", "counting", "position", "color_attr")


class Stage(Config):
    """What is trained on from a step onwards.

    The noise level's logit is drawn from N(log shift, spread^2).
    """

    start: int = Field(default=0, ge=0)
    shift: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    spread: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    text_share: float = Field(default=0.25, ge=0, le=1)
    crowded_share: float | None = Field(default=None, ge=0, le=1)
    """The share of scenes that have several objects; null: every tag comes equally often."""
    crowded: tuple[str, ...] = CROWDED
    """The tags of such scenes; one that is named twice comes twice as often."""

    @field_validator("crowded")
    @classmethod
    def _known_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if not tags or set(tags) - set(TAGS):
            raise ValueError(f"it should name tags out of {', '.join(TAGS)}")
        return tags


# Details are learned first, at middling noise. Where things stand is decided at high noise, so that
# is where training goes next; then to scenes of several objects, and last to relations and colours,
# over a wide range of noise that keeps the details.
STAGES = (
    Stage(),
    Stage(start=4_000, shift=3.0),
    Stage(start=6_000, shift=3.0, crowded_share=0.9),
    Stage(
        start=8_000,
        shift=4.0,
        spread=1.5,
        text_share=0.12,
        crowded_share=0.9,
        crowded=(*CROWDED, "position", "color_attr"),
    ),
)


class PretrainConfig(Config):
    """The recipe of the base model; the one that ships was made with the defaults."""

    steps: int = Field(12_000, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    muon: bool = True  # Muon for the transformer's matrices, AdamW for the rest
    warmup: int = Field(200, ge=0)
    decay: float = Field(0.25, ge=0, le=1)  # the last share of the steps, over which the rate falls
    stages: tuple[Stage, ...] = STAGES
    caption_dropout: float = Field(0.1, ge=0, le=1)
    ema: float = Field(0.999, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    compile: bool = True  # twice as fast; needs a C++ compiler
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> Self:
        starts = [stage.start for stage in self.stages]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError("stages should begin at step 0, each later than the one before")
        return self

    def stage(self, step: int) -> Stage:
        return current(self.stages, step)

    @property
    def decay_start(self) -> int:
        return round(self.steps * (1 - self.decay))


def current(stages: Sequence[Stage], step: int) -> Stage:
    """The last stage that has begun."""
    return [stage for stage in stages if stage.start <= step][-1]


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Warm-up, constant, then linear to zero."""
    rise = (step + 1) / max(1, config.warmup)
    fall = (config.steps - step) / max(1, config.steps - config.decay_start)
    return config.learning_rate * min(1.0, rise, fall)
