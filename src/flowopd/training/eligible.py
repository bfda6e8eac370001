"""The steps of a rollout that an algorithm may train on."""

from flowopd.algorithms.settings import GRPOConfig, OPDConfig
from flowopd.training.config import TrainConfig


def eligible_steps(config: TrainConfig) -> list[int]:
    """A ratio needs noise, and leaves out the last step (t' = 0); a KL's weight needs noise."""
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, GRPOConfig | OPDConfig)
    if isinstance(algorithm, GRPOConfig) or algorithm.policy_gradient:
        return noisy_steps(config)
    if algorithm.weighting in ("uniform", "ode"):
        return list(range(rollout.steps))
    return noisy_steps(config, last=rollout.sampler == "flow_sde")


def noisy_steps(config: TrainConfig, *, last: bool = False) -> list[int]:
    """The steps that draw noise, with or without the last one, which has next to none."""
    sampler, steps = config.rollout.flow_sampler(), config.rollout.steps
    return [k for k in range(steps if last else steps - 1) if sampler.kind_at(k) != "ode"]
