"""The recipe of the base model."""

from pydantic import Field

from flowopd.config import Config


class PretrainConfig(Config):
    """The recipe of the base model; the one that ships was made with the defaults."""

    steps: int = Field(12_000, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    muon: bool = True  # Muon for the transformer's matrices, AdamW for the rest
    warmup: int = Field(200, ge=0)
    decay: float = Field(0.25, ge=0, le=1)  # the last share of the steps, over which the rate falls
    shift: float = Field(3.0, gt=0)  # moves training to high noise, where the layout is decided
    shift_after: int = Field(4_000, ge=0)  # details first: up to this step there is no shift
    crowded_share: float = Field(0.9, ge=0, le=1)  # of the scenes: those of several objects
    crowded_after: int = Field(6_000, ge=0)  # up to this step every tag comes equally often
    text_share: float = Field(0.25, ge=0, le=1)
    caption_dropout: float = Field(0.1, ge=0, le=1)
    ema: float = Field(0.999, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    compile: bool = True  # twice as fast; needs a C++ compiler
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)

    def shift_at(self, step: int) -> float:
        return self.shift if step >= self.shift_after else 1.0

    @property
    def decay_start(self) -> int:
        return round(self.steps * (1 - self.decay))


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Warm-up, constant, then linear to zero."""
    rise = (step + 1) / max(1, config.warmup)
    fall = (config.steps - step) / max(1, config.steps - config.decay_start)
    return config.learning_rate * min(1.0, rise, fall)
