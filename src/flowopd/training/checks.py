"""What a training configuration gets wrong that no single key shows."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowopd.algorithms.settings import BASE, GRPOConfig, NFTConfig, OPDConfig, SFTConfig
from flowopd.errors import FlowOPDError
from flowopd.training.division import Division, possible_counts, require_full_passes

if TYPE_CHECKING:
    from flowopd.training.config import TrainConfig


def check_combination(config: "TrainConfig") -> None:
    """Refuse keys that contradict each other, or that would do nothing."""
    _check_teachers(config)
    _check_rewards(config)
    _check_rollout(config)
    _check_batch(config)
    per_rollout = getattr(config.algorithm, "updates_per_rollout", 1)
    if config.updates % per_rollout:
        raise FlowOPDError(
            f"updates is {config.updates}, which is no multiple of algorithm.updates_per_rollout "
            f"({per_rollout}): the last rollout would be used in part."
        )
    if config.interference_every is not None:
        _check_interference(config)
    if config.student.full and isinstance(config.algorithm, NFTConfig):
        raise FlowOPDError(
            "student.full trains all weights, but nft keeps an older student, which only a LoRA "
            "can afford; use another algorithm, or a LoRA."
        )
    if config.ema is not None and config.ema.every > config.updates:
        raise FlowOPDError(
            f"ema.every is {config.ema.every}, but there are only {config.updates} updates: the "
            "averages would stay at the start."
        )


def _check_interference(config: "TrainConfig") -> None:
    if config.student.full:
        raise FlowOPDError(
            "interference_every compares gradients of adapters; with student.full they would take "
            "as much memory as the network, for each task. Leave one of them out."
        )
    if len(config.tasks) < 2:
        raise FlowOPDError(
            "interference_every compares the gradients of tasks, and there is one task only."
        )
    if config.batch.mixing == "alternating":
        raise FlowOPDError(
            "interference_every compares the gradients of tasks within an update, and with "
            "batch.mixing: alternating an update has one task only."
        )


def _check_teachers(config: "TrainConfig") -> None:
    taught = isinstance(config.algorithm, OPDConfig | SFTConfig)
    for name, task in config.tasks.items():
        if taught and task.teacher is None:
            raise FlowOPDError(
                f"The task {name!r} has no teacher, and {config.algorithm.name} learns from "
                f"teachers; give tasks.{name}.teacher an adapter."
            )
        if not taught and (task.teacher is not None or task.teacher_guidance is not None):
            raise FlowOPDError(
                f"The task {name!r} has a teacher, which {config.algorithm.name} would not use; "
                "leave it out."
            )
    check_self_teaching(config, str)


def check_self_teaching(config: "TrainConfig", identify: Callable[[Path], str]) -> None:
    """A start that is every teacher, at one guidance, has nothing to learn but from others.

    `identify` tells one adapter from another: by its path, or later by its content.
    """
    algorithm = config.algorithm
    if config.start is None or not isinstance(algorithm, OPDConfig):
        return
    if anchor_adapter(config) is not None or algorithm.loss == "mixed":
        return
    student = (identify(config.start), config.rollout.guidance_of(algorithm.student_guidance))
    teachers = {
        (identify(task.teacher), config.teacher_guidance(name))
        for name, task in config.tasks.items()
        if task.teacher is not None
    }
    if teachers == {student}:
        raise FlowOPDError(
            f"The student starts from {config.start}, which is also the teacher of every task: it "
            "would be its own teacher, and nothing would be learned."
        )


def _check_rewards(config: "TrainConfig") -> None:
    algorithm = config.algorithm
    learns = isinstance(algorithm, GRPOConfig | NFTConfig)
    missing = [name for name, task in config.tasks.items() if not task.reward]
    if scores_rollouts(config) and missing:
        raise FlowOPDError(
            f"The task {missing[0]!r} has no reward, and {algorithm.name} needs one; give "
            f"tasks.{missing[0]}.reward metrics with weights, and scorers that give them."
        )
    grouped = learns or (isinstance(algorithm, OPDConfig) and algorithm.loss == "mixed")
    if grouped and config.batch.images_per_prompt < 2:
        raise FlowOPDError(
            "batch.images_per_prompt is 1, but advantages compare the pictures of one prompt; "
            "use 2 or more (16 or 24 are usual)."
        )


def scores_rollouts(config: "TrainConfig") -> bool:
    """Whether rewards are read in training, be it only for the log."""
    algorithm = config.algorithm
    return isinstance(algorithm, GRPOConfig | NFTConfig) or (
        isinstance(algorithm, OPDConfig) and algorithm.rewarded
    )


def _check_rollout(config: "TrainConfig") -> None:
    algorithm, rollout = config.algorithm, config.rollout
    if isinstance(algorithm, SFTConfig | NFTConfig):
        if isinstance(algorithm, NFTConfig):
            _check_nft(config, algorithm)
        return
    ratio = isinstance(algorithm, GRPOConfig) or algorithm.policy_gradient
    dense = isinstance(algorithm, OPDConfig) and algorithm.weighting in ("kl", "released")
    if rollout.sampler == "ode" and (ratio or dense):
        raise FlowOPDError(
            "rollout.sampler is ode, whose steps have no density: this algorithm needs flow_sde or "
            "cps" + ("." if ratio else ", or algorithm.weighting: uniform or ode.")
        )
    if algorithm.steps.ode_elsewhere and rollout.sampler == "ode":
        raise FlowOPDError("algorithm.steps.ode_elsewhere would do nothing: the sampler is ode.")
    if isinstance(algorithm, OPDConfig):
        own = algorithm.student_guidance
        if algorithm.policy_gradient and own not in (None, rollout.guidance):
            raise FlowOPDError(
                f"algorithm.student_guidance is {own}, but the rollouts have {rollout.guidance}: "
                "the ratio of the policy gradient compares one policy with itself."
            )
    _check_steps(config)


def _check_nft(config: "TrainConfig", algorithm: NFTConfig) -> None:
    rollout = config.rollout
    if algorithm.times > rollout.steps:
        raise FlowOPDError(
            f"algorithm.times is {algorithm.times}, but a rollout has only {rollout.steps} "
            "noise levels to choose from."
        )
    if rollout.guidance != 1:
        raise FlowOPDError(
            f"rollout.guidance is {rollout.guidance}, but nft draws and trains without guidance: "
            "its older student would not be the one that drew. Use 1."
        )
    if rollout.sampler == "ode" and rollout.same_noise:
        raise FlowOPDError(
            "rollout.same_noise with the ODE makes all pictures of a group the same; leave it out, "
            "or use a stochastic sampler."
        )


def _check_steps(config: "TrainConfig") -> None:
    from flowopd.algorithms.steps import check_count
    from flowopd.training.eligible import eligible_steps

    assert isinstance(config.algorithm, GRPOConfig | OPDConfig)
    steps = eligible_steps(config)
    if not steps:
        raise FlowOPDError(
            "rollout.sde_window leaves no step to train on (the last step carries no ratio)."
        )
    chosen, per_rollout = config.algorithm.steps, config.algorithm.updates_per_rollout
    check_count(chosen, len(steps))
    if chosen.slide_every is not None and chosen.slide_every < per_rollout:
        raise FlowOPDError(
            f"algorithm.steps.slide_every is {chosen.slide_every}, and a rollout serves "
            f"{per_rollout} updates: the window would pass over places. Use {per_rollout} or more."
        )


def _check_batch(config: "TrainConfig") -> None:
    batch = config.batch
    if config.rollout.same_noise and batch.images_per_prompt == 1:
        raise FlowOPDError("rollout.same_noise would do nothing: a group is one picture.")
    if config.optimizer.warmup > config.updates:
        raise FlowOPDError(
            f"optimizer.warmup is {config.optimizer.warmup}, longer than the {config.updates} "
            "updates: the learning rate would never be reached."
        )
    for name, task in config.tasks.items():
        if any(entry.images_per_prompt is not None for entry in task.prompts):
            raise FlowOPDError(
                f"tasks.{name}.prompts has images_per_prompt, which is for evaluations; the size "
                "of a group in training is batch.images_per_prompt."
            )
    if batch.shares == "adaptive":
        _check_adaptive(config)
    if batch.mixing == "alternating" and len(config.tasks) == 1:
        raise FlowOPDError("batch.mixing: alternating would do nothing: there is one task only.")
    if batch.mixing == "mixed" and batch.prompts < len(config.tasks):
        raise FlowOPDError(
            f"batch.prompts is {batch.prompts}, fewer than the {len(config.tasks)} tasks; use more "
            "prompts, or mixing: alternating."
        )


def _check_adaptive(config: "TrainConfig") -> None:
    if not isinstance(config.algorithm, OPDConfig):
        raise FlowOPDError(
            "batch.shares: adaptive follows the divergence from the teachers, which only opd "
            "has; use fixed."
        )
    if len(config.tasks) == 1:
        raise FlowOPDError("batch.shares: adaptive would do nothing: there is one task only.")
    if config.batch.mixing == "alternating" and config.algorithm.steps.choose != "all":
        raise FlowOPDError(
            "batch.shares: adaptive compares the tasks' divergences, and with mixing: "
            "alternating and a choice of steps each would be of other steps; use mixing: "
            "mixed, or algorithm.steps.choose: all."
        )


def check_processes(config: "TrainConfig", count: int) -> None:
    """Refuse what cannot be divided over so many processes."""
    batch = config.batch
    images = batch.prompts * batch.images_per_prompt
    if images < count:
        raise FlowOPDError(
            f"A batch has {images} images (batch.prompts x batch.images_per_prompt), fewer than "
            f"the {count} processes; use more images, or fewer processes."
        )
    device = str(getattr(config.model, "device", "auto"))
    if count > 1 and ":" in device:
        raise FlowOPDError(
            f"model.device is {device}, and each of the {count} processes has a device of its "
            "own; use auto, or cuda."
        )
    if config.student.full and count > 1:
        for counts in possible_counts(config):
            require_full_passes(Division(counts, count, batch.micro))


def anchor_path(config: "TrainConfig") -> str | None:
    """The anchor's adapter as given: a path, "base", or None."""
    anchor = config.algorithm.anchor if isinstance(config.algorithm, OPDConfig) else None
    return None if anchor is None else (BASE if anchor.adapter == BASE else str(anchor.adapter))


def anchor_adapter(config: "TrainConfig") -> Path | None:
    """The anchor's adapter; None: it is the base, or there is no anchor."""
    given = anchor_path(config)
    return None if given in (None, BASE) else Path(str(given))
