"""What a run will take, counted as the methods work, before anything is loaded."""

import math
from dataclasses import dataclass

from flowopd.algorithms.settings import GRPOConfig, NFTConfig, OPDConfig, SFTConfig
from flowopd.flow import forwards_of
from flowopd.policy.generate import SamplingConfig
from flowopd.training.config import TrainConfig
from flowopd.training.eligible import eligible_steps, noisy_steps


@dataclass(frozen=True)
class Estimate:
    """Pictures, and samples through the network forwards and backwards; with guidance, twice."""

    images: int
    forwards: int
    backwards: int
    before: int = 0
    """Of the forwards, those that come before the first update."""

    def forwards_of_update(self, updates: int) -> int:
        """On average over so many."""
        return round((self.forwards - self.before) / updates)


def estimate(config: TrainConfig) -> Estimate:
    """Of the whole run, without its probes.

    At most: groups without spread are skipped, and a distillation's rollout ends after the last
    step that it trains on.
    """
    algorithm, rollout = config.algorithm, config.rollout
    size = config.batch.prompts * config.batch.images_per_prompt
    twice = forwards_of(rollout.guidance)
    rounds = config.updates // getattr(algorithm, "updates_per_rollout", 1)
    samples, drawn = size * config.updates, size * rounds * rollout.steps * twice
    if isinstance(algorithm, SFTConfig):
        pictures = algorithm.images_per_task * len(config.tasks)
        pool = _pool(config)
        return Estimate(pictures, pool + samples, samples, before=pool)
    if isinstance(algorithm, NFTConfig):
        trained = samples * algorithm.times
        return Estimate(size * rounds, drawn + trained * (3 if algorithm.kl else 2), trained)
    steps = algorithm.steps.count or len(eligible_steps(config))
    trained = samples * steps * twice
    if isinstance(algorithm, GRPOConfig):
        return Estimate(size * rounds, drawn + trained * (2 if algorithm.kl else 1), trained)
    walked = rollout.steps if algorithm.rewarded else max(eligible_steps(config)) + 1
    drawn = size * rounds * walked * twice
    graded = samples * steps * forwards_of(rollout.guidance_of(algorithm.student_guidance))
    return Estimate(size * rounds, drawn + _distilling(config, rounds, steps), graded)


def probe_count(config: TrainConfig) -> int:
    """How often a run is probed: before it, every so many updates, and after the last."""
    if config.probe is None:
        return 0
    every = config.probe.every
    return 1 + math.ceil(config.updates / every)


def drawing(sampling: SamplingConfig, pictures: int) -> int:
    """Forwards of pictures that are drawn and not learned from."""
    return pictures * sampling.steps * forwards_of(sampling.guidance)


def _pool(config: TrainConfig) -> int:
    """Forwards of the teachers' pictures."""
    assert isinstance(config.algorithm, SFTConfig)
    each = config.algorithm.images_per_task * config.rollout.steps
    return sum(each * forwards_of(config.teacher_guidance(task)) for task in config.tasks)


def _distilling(config: TrainConfig, rounds: int, steps: int) -> int:
    """Forwards beside the rollouts': the student's again, its teacher's, the anchor's."""
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, OPDConfig)
    size = config.batch.prompts * config.batch.images_per_prompt

    shares = sum(task.share for task in config.tasks.values())
    teacher = sum(
        forwards_of(config.teacher_guidance(name)) * task.share / shares
        for name, task in config.tasks.items()
    )
    judged = steps
    if algorithm.policy_gradient and algorithm.horizon == "trajectory":
        judged = len(noisy_steps(config))
    own = rollout.guidance_of(algorithm.student_guidance)
    again = 0 if algorithm.fused and own == rollout.guidance else forwards_of(own)
    anchor = algorithm.anchor
    anchored = (
        0.0 if anchor is None else anchor.share * forwards_of(rollout.guidance_of(anchor.guidance))
    )
    per_update = steps * (again + anchored)
    return round(size * (rounds * judged * teacher + config.updates * per_update))
