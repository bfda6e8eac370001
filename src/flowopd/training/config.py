"""The configuration of one training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from flowopd.algorithms.settings import ALGORITHMS, AlgorithmConfig
from flowopd.config import AdapterPath, Config, Seed, build
from flowopd.errors import FlowOPDError
from flowopd.models import ModelField, model_keys
from flowopd.policy.generate import SamplingConfig
from flowopd.rewards.reward import RewardTerm
from flowopd.rewards.settings import ScorerSpec
from flowopd.tasks.prompt_set import PromptSet

TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
Beta = Annotated[float, Field(ge=0, lt=1)]
HOUSEKEEPING: dict[str, Any] = {
    "checkpoint": True,
    "probe": True,
    "trackers": True,
    "text_cache": True,
    "interference_every": True,
    "rewards": True,
    "check_rewards": True,
    "batch": {"micro"},
    "teachers": {"place"},
}
"""Keys that change what is recorded and kept, or how the work is cut up, but not what is trained.
As pydantic excludes them."""


class TaskConfig(Config):
    """A task binds prompts to a reward, a teacher and a share of the batch."""

    prompts: list[PromptSet] = Field(min_length=1)
    reward: dict[str, RewardTerm] = Field(default_factory=dict)
    """Metrics of the scorers, with weights: the reward is their weighted sum."""
    teacher: AdapterPath | None = None
    teacher_guidance: float | None = Field(None, ge=0)
    """null: the guidance of the rollouts."""
    share: float = Field(1.0, gt=0, allow_inf_nan=False)

    @field_validator("prompts", mode="before")
    @classmethod
    def _short_prompts(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        return [{"path": one} if isinstance(one, str | Path) else one for one in listed]

    @field_validator("reward", mode="before")
    @classmethod
    def _short_reward(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: {"weight": v} if _is_number(v) else v for k, v in value.items()}


def _is_number(value: Any) -> bool:
    """A number, or a text that is one: YAML 1.1 reads 1e-1 as a text."""
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        float(value)
    except ValueError:
        return False
    return True


def with_scales(settings: dict[str, Any], scales: Mapping[str, float]) -> dict[str, Any]:
    """The settings of a run as plain data, with what each term of a reward is divided by."""

    def scaled(metric: str, term: dict[str, Any]) -> dict[str, Any]:
        return term if term["scale"] is not None else term | {"scale": scales.get(metric)}

    tasks = {
        name: task | {"reward": {key: scaled(key, term) for key, term in task["reward"].items()}}
        for name, task in settings["tasks"].items()
    }
    return settings | {"tasks": tasks}


class StudentConfig(Config):
    """What is trained: a LoRA, where it does not start from another, or all weights."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    targets: list[str] | Literal["all-linear"] | None = None
    """null: the model's own choice."""
    full: bool = False
    """Train all weights of a copy of the network, in float32 and in shares over the processes."""

    @model_validator(mode="after")
    def _lora_or_all(self) -> Self:
        fields = type(self).model_fields
        given = [k for k in ("rank", "alpha", "targets") if getattr(self, k) != fields[k].default]
        if self.full and given:
            raise ValueError(
                f"full: true trains all weights, and {', '.join(given)} is of a LoRA; leave one of "
                "them out"
            )
        return self


class TeachersConfig(Config):
    """How teachers and the anchor are kept."""

    place: Literal["device", "host"] = "device"
    """Whole networks stay on the device, or wait in host memory between groups of samples."""
    merged: bool = False
    """Adapters get copies of the layers that they adapt, with themselves in them: faster."""


class RolloutConfig(SamplingConfig):
    """How trajectories are drawn in training."""

    steps: int = Field(10, ge=2)
    sampler: Literal["ode", "flow_sde", "cps"] = "flow_sde"
    same_noise: bool = False
    """One initial noise for all pictures of a group."""

    def guidance_of(self, own: float | None) -> float:
        """A role's own guidance, or with None that of the rollouts."""
        return self.guidance if own is None else own


class BatchConfig(Config):
    """Global quantities: what one update is made from, on however many devices."""

    prompts: int = Field(ge=1)
    images_per_prompt: int = Field(1, ge=1)
    """The size of a group."""
    micro: int = Field(16, ge=1)
    """The most pictures that go through the network at once on one device."""
    mixing: Literal["mixed", "alternating"] = "mixed"
    """Several tasks in an update, or one task an update in turn."""
    shares: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: tasks whose divergence has fallen least get more of the batch."""


class OptimizerConfig(Config):
    """AdamW."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    decay: Literal["none", "cosine"] = "none"


class EmaConfig(Config):
    decay: float = Field(0.9, ge=0, lt=1)
    every: int = Field(8, ge=1)


class CheckpointConfig(Config):
    every: int = Field(25, ge=1)
    keep: int = Field(2, ge=1)


class ProbeConfig(Config):
    """Pictures of fixed prompts and seeds, drawn and scored now and then: curves and panels."""

    every: int = Field(ge=1)
    prompts: list[PromptSet] = Field(min_length=1)
    scorers: list[ScorerSpec] = Field(min_length=1)
    limit: int | None = Field(None, ge=1)
    seed: Seed = 1_000_000
    sampling: SamplingConfig
    panel: int = Field(24, ge=0)
    """How many of the pictures go on the panel."""


class RewardsConfig(Config):
    """What is made of scorers that fail."""

    most_missing: float = Field(0.2, ge=0, le=1)
    """The share of an update's rewards that may be missing; with more the run ends."""


class TrainConfig(Config):
    """Everything that a run depends on."""

    shorthands = {"model": model_keys}  # noqa: RUF012

    model: ModelField
    seed: Seed = 0
    scorers: list[ScorerSpec] = Field(default_factory=list)
    tasks: dict[TaskName, TaskConfig] = Field(min_length=1)
    algorithm: AlgorithmConfig
    start: AdapterPath | None = None
    """An adapter to go on from; its rank and targets are kept."""
    student: StudentConfig = StudentConfig()
    teachers: TeachersConfig = TeachersConfig()
    rollout: RolloutConfig = RolloutConfig()
    batch: BatchConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig | None = None
    updates: int = Field(ge=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig | None = None
    interference_every: int | None = Field(None, ge=1)
    """Log the cosine between the tasks' gradients every so many updates."""
    rewards: RewardsConfig = RewardsConfig()
    check_rewards: bool = True
    """Whether the scorers check themselves before the run begins."""
    trackers: list[str] = Field(default_factory=list)
    """accelerate's trackers by name: tensorboard, wandb."""
    text_cache: Path | None = None

    @property
    def endless(self) -> bool:
        """Whether nothing of an update depends on how many there will be."""
        return self.optimizer.decay == "none"

    def teacher_guidance(self, task: str) -> float:
        """The guidance at which the teacher of a task is asked."""
        return self.rollout.guidance_of(self.tasks[task].teacher_guidance)

    @field_validator("algorithm", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        """The settings of the algorithm that is named, checked key by key."""
        known = ", ".join(ALGORITHMS)
        if isinstance(value, AlgorithmConfig):
            return value
        if not isinstance(value, dict):
            raise FlowOPDError(
                f"The key 'algorithm' is {value!r}; it should be keys and values, with a name "
                f"({known})."
            )
        name = value.get("name")
        if not isinstance(name, str) or name not in ALGORITHMS:
            raise FlowOPDError(f"The key 'algorithm.name' is {name!r}; it is one of {known}.")
        return build(ALGORITHMS[name], value, prefix="algorithm", context=info.context)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from flowopd.training.checks import check_combination

        check_combination(self)
        return self
