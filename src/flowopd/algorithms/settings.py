"""The settings of each algorithm, as a recipe spells them under `algorithm`."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from flowopd.config import AdapterPath, Config
from flowopd.flow import Weighting

BASE = "base"
Choice = Literal["all", "random", "stratified", "beta", "window"]


class StepsConfig(Config):
    """Which steps of a rollout are trained on."""

    choose: Choice = "all"
    count: int | None = Field(None, ge=1)
    """How many steps; of a window, its length."""
    slide_every: int | None = Field(None, ge=1)
    """A window moves one step every so many updates; null: to a random place at each."""
    ode_elsewhere: bool = False
    """Draw noise at the chosen steps only, and step by the ODE elsewhere."""
    reweight: bool = True
    """Weigh the chosen steps so that the expectation is the mean over all of them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.choose == "all") != (self.count is None):
            raise ValueError("count goes with every choice of steps but 'all', and has to")
        if self.choose == "all" and self.ode_elsewhere:
            raise ValueError("ode_elsewhere goes with a choice of some steps, not with 'all'")
        if self.slide_every is not None and self.choose != "window":
            raise ValueError("slide_every is for choose: window")
        if not self.reweight and self.choose != "beta":
            raise ValueError(
                "reweight: false is for choose: beta; the other choices' weights are fixed anyway"
            )
        return self


class GRPOConfig(Config):
    """Flow-GRPO: group advantages (7), the clipped surrogate (8), KL to the base (9)."""

    name: Literal["grpo"] = "grpo"
    steps: StepsConfig = StepsConfig()
    clip: float = Field(1e-4, gt=0, lt=1)
    advantage_clip: float = Field(5.0, gt=0)
    spread: Literal["global", "group"] = "global"
    """Whose standard deviation an advantage is divided by."""
    kl: float = Field(0.04, ge=0)
    """beta of (9)."""
    weighting: Weighting = "kl"
    """What the KL weighs a step's squared difference of velocities by."""
    updates_per_rollout: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kl == 0 and self.weighting != "kl":
            raise ValueError("weighting would do nothing: kl is 0")
        return self


class SFTConfig(Config):
    """A cold start: flow matching (10) on pictures that the teachers drew."""

    name: Literal["sft"] = "sft"
    images_per_task: int = Field(1024, ge=1)
    """Pictures that each task's teacher draws beforehand: by the ODE, with a noise of their own,
    whatever the rollout's sampler and its keys are."""
    t_mean: float = 0.0
    """Mean and deviation of logit t."""
    t_std: float = Field(1.0, gt=0)


class AnchorConfig(Config):
    """Manifold anchor regularisation (16)."""

    adapter: AdapterPath | Literal["base"]
    weight: float = Field(0.02, gt=0)
    share: float = Field(1.0, gt=0, le=1)
    """The share of samples on which the anchor is evaluated; reweighted."""
    guidance: float | None = Field(None, ge=0)
    """null: the guidance of the rollouts."""


class OPDConfig(Config):
    """On-policy distillation: pathwise (13), by policy gradient (14), mixed with a reward (15)."""

    name: Literal["opd"] = "opd"
    loss: Literal["pathwise", "policy_gradient", "both", "mixed"] = "pathwise"
    weighting: Weighting = "kl"
    steps: StepsConfig = StepsConfig()
    anchor: AnchorConfig | None = None
    path: Literal["auto", "fused", "stored"] = "auto"
    """fused: train while sampling. auto: wherever that is possible."""
    student_guidance: float | None = Field(None, ge=0)
    """The guidance of the trained velocity; null: that of the rollouts."""
    horizon: Literal["step", "trajectory"] = "trajectory"
    """Which KLs a step is charged by the policy gradient: its own, or those of later steps too."""
    normalise: bool = True
    """Divide the policy gradient's advantages by their deviation within a task, around its mean."""
    clip: float = Field(1e-4, gt=0, lt=1)
    advantage_clip: float = Field(5.0, gt=0)
    updates_per_rollout: int = Field(1, ge=1)
    log_reward: bool = False
    """Decode and score rollouts although the loss does not need it."""

    @field_validator("anchor", mode="before")
    @classmethod
    def _short_anchor(cls, value: Any) -> Any:
        return {"adapter": value} if isinstance(value, str) else value

    @property
    def pathwise(self) -> bool:
        return self.loss in ("pathwise", "both")

    @property
    def policy_gradient(self) -> bool:
        return self.loss != "pathwise"

    @property
    def rewarded(self) -> bool:
        """Whether rollouts are scored."""
        return self.loss == "mixed" or self.log_reward

    @property
    def fused(self) -> bool:
        """Whether a step can be trained on while it is sampled, and is."""
        return self.path != "stored" and self._why_not_fused() == ""

    def _why_not_fused(self) -> str:
        if self.policy_gradient:
            return f"loss: {self.loss} needs the whole trajectory first"
        if self.updates_per_rollout > 1:
            return "a rollout that serves several updates has to be stored"
        return ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        reason = self._why_not_fused()
        if self.path == "fused" and reason:
            raise ValueError(f"path: fused is not possible, because {reason}")
        fields = type(self).model_fields
        idle = ("advantage_clip", "clip", "horizon", "normalise")
        given = [name for name in idle if getattr(self, name) != fields[name].default]
        if given and not self.policy_gradient:
            raise ValueError(f"{', '.join(given)} would do nothing with loss: pathwise")
        if self.log_reward and self.loss == "mixed":
            raise ValueError("log_reward would do nothing: loss: mixed has a reward, and logs it")
        if self.steps.ode_elsewhere and self.policy_gradient and self.horizon == "trajectory":
            raise ValueError(
                "ode_elsewhere leaves the other steps without a KL, which horizon: trajectory needs"
            )
        return self


class OldConfig(Config):
    """How the sampling policy of NFT follows: `old <- d old + (1 - d) student`,
    d = min(slope · max(0, round - after), highest), a round being a batch."""

    slope: float = Field(0.001, ge=0)
    highest: float = Field(0.5, ge=0, lt=1)
    after: int = Field(0, ge=0)


class NFTConfig(Config):
    """DiffusionNFT (17): reward-weighted flow matching on the student's own pictures."""

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    advantage_clip: float = Field(5.0, gt=0)
    spread: Literal["global", "group"] = "global"
    kl: float = Field(1e-4, ge=0)
    times: int = Field(2, ge=1)
    """Noise levels of the rollout's grid at which each picture is trained on."""
    old: OldConfig = OldConfig()
    updates_per_rollout: int = Field(1, ge=1)


AlgorithmConfig = GRPOConfig | SFTConfig | OPDConfig | NFTConfig
ALGORITHMS: Mapping[str, type[AlgorithmConfig]] = {
    "grpo": GRPOConfig,
    "sft": SFTConfig,
    "opd": OPDConfig,
    "nft": NFTConfig,
}
