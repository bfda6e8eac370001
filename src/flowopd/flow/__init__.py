"""The flow mathematics: schedules, transitions, guidance, noise and rollouts (docs/math.md)."""

from flowopd.flow.guidance import (
    Condition,
    ConditionalVelocity,
    VelocityFn,
    combine_guidance,
    forwards_of,
    guided,
)
from flowopd.flow.noise import NoiseSource
from flowopd.flow.rollout import Sampler, Step, rollout, sde_window
from flowopd.flow.schedule import sigma_schedule
from flowopd.flow.transitions import (
    Kind,
    Transition,
    Weighting,
    kl_weight,
    mean_log_prob,
    transition,
)

__all__ = [
    "Condition",
    "ConditionalVelocity",
    "Kind",
    "NoiseSource",
    "Sampler",
    "Step",
    "Transition",
    "VelocityFn",
    "Weighting",
    "combine_guidance",
    "forwards_of",
    "guided",
    "kl_weight",
    "mean_log_prob",
    "rollout",
    "sde_window",
    "sigma_schedule",
    "transition",
]
