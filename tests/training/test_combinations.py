"""Keys that contradict each other, or that would do nothing: every sentence of the checks."""

from pathlib import Path
from typing import Any

import pytest

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.training.checks import anchor_path, check_processes
from flowopd.training.config import TrainConfig
from flowopd.training.eligible import eligible_steps

pytestmark = pytest.mark.usefixtures("fake_plugins")

OPD: dict[str, Any] = {"name": "opd"}
GRPO: dict[str, Any] = {"name": "grpo"}
PG: dict[str, Any] = {"name": "opd", "loss": "policy_gradient"}
MIXED: dict[str, Any] = {"name": "opd", "loss": "mixed"}
NFT: dict[str, Any] = {"name": "nft"}
SFT: dict[str, Any] = {"name": "sft"}
RANDOM = {"choose": "random", "count": 2}
SLIDING = {"choose": "window", "count": 2, "slide_every": 1}
ELSEWHERE = RANDOM | {"ode_elsewhere": True}


def task(**keys: Any) -> dict[str, Any]:
    return {"prompts": "p.txt", **keys}


TAUGHT = {"a": task(teacher="ta", reward={"x": 1}), "b": task(teacher="tb", reward={"x": 1})}
REWARDED = {"a": task(reward={"x": 1}), "b": task(reward={"x": 1})}


def config(algorithm: dict[str, Any], **changes: Any) -> TrainConfig:
    taught = algorithm["name"] in ("opd", "sft")
    data = {
        "model": "fake",
        "tasks": TAUGHT if taught else REWARDED,
        "algorithm": algorithm,
        "rollout": {"steps": 6, "guidance": 1.0 if algorithm["name"] == "nft" else 2.0},
        "batch": {"prompts": 4, "images_per_prompt": 2},
        "updates": 8,
    }
    return build(TrainConfig, data | changes)


def rollout(**keys: Any) -> dict[str, Any]:
    return {"rollout": {"steps": 6, "guidance": 2.0, **keys}}


def batch(**keys: Any) -> dict[str, Any]:
    return {"batch": {"prompts": 4, "images_per_prompt": 2, **keys}}


ONE_TAUGHT = {"tasks": {"a": TAUGHT["a"]}}
TO_ITSELF = {"start": "ta", **ONE_TAUGHT}


@pytest.mark.parametrize(
    ("algorithm", "changes", "sentence"),
    [
        # Teachers and rewards.
        (OPD, {"tasks": {"a": task(teacher="t"), "b": task()}}, "The task 'b' has no teacher, and"),
        (SFT, {"tasks": {"a": task()}}, "The task 'a' has no teacher, and sft learns from"),
        (GRPO, {"tasks": TAUGHT}, "The task 'a' has a teacher, which grpo would not use"),
        (
            NFT,
            {"tasks": {"a": task(reward={"x": 1}, teacher_guidance=2.0)}},
            "The task 'a' has a teacher, which nft would not use",
        ),
        (OPD, TO_ITSELF, "it would be its own teacher, and nothing would be learned"),
        (
            PG,
            {"start": "t", "tasks": {"a": task(teacher="t"), "b": task(teacher="t")}},
            "it would be its own teacher, and nothing would be learned",
        ),
        (GRPO, {"tasks": {"a": task()}}, "The task 'a' has no reward, and grpo needs one"),
        (NFT, {"tasks": {"a": task()}}, "The task 'a' has no reward, and nft needs one"),
        (MIXED, {"tasks": {"a": task(teacher="t")}}, "The task 'a' has no reward, and opd needs"),
        (
            OPD | {"log_reward": True},
            {"tasks": {"a": TAUGHT["a"], "b": task(teacher="t")}},
            "The task 'b' has no reward, and opd needs one; give tasks.b.reward metrics",
        ),
        (GRPO, batch(images_per_prompt=1), "batch.images_per_prompt is 1, but advantages compare"),
        (NFT, batch(images_per_prompt=1), "batch.images_per_prompt is 1, but advantages compare"),
        (MIXED, batch(images_per_prompt=1), "batch.images_per_prompt is 1, but advantages"),
        # Rollouts and steps.
        (NFT, rollout(), "rollout.guidance is 2.0, but nft draws and trains without guidance"),
        (NFT, rollout(guidance=1.0, sampler="ode", same_noise=True), "all pictures of a group the"),
        (
            GRPO,
            {"optimizer": {"warmup": 9}},
            "optimizer.warmup is 9, longer than the 8 updates",
        ),
        (OPD, batch(images_per_prompt=1) | rollout(same_noise=True), "a group is one picture"),
        (
            GRPO,
            {"tasks": {"a": REWARDED["a"] | {"prompts": [{"path": "p", "images_per_prompt": 2}]}}},
            "tasks.a.prompts has images_per_prompt, which is for evaluations",
        ),
        (NFT | {"times": 7}, {}, "algorithm.times is 7, but a rollout has only 6 noise levels"),
        (GRPO, rollout(sampler="ode"), "rollout.sampler is ode, whose steps have no density: this"),
        (
            OPD,
            rollout(sampler="ode"),
            "needs flow_sde or cps, or algorithm.weighting: uniform or ode.",
        ),
        (PG | {"weighting": "uniform"}, rollout(sampler="ode"), "needs flow_sde or cps."),
        (
            OPD | {"weighting": "uniform", "steps": ELSEWHERE},
            rollout(sampler="ode"),
            "algorithm.steps.ode_elsewhere would do nothing: the sampler is ode",
        ),
        (
            PG | {"student_guidance": 1.0},
            {},
            "algorithm.student_guidance is 1.0, but the rollouts have 2.0: the ratio of the policy",
        ),
        (GRPO, rollout(sde_window=[5, 1]), "rollout.sde_window leaves no step to train on"),
        (OPD, rollout(sampler="cps", sde_window=[5, 1]), "leaves no step to train on"),
        (
            GRPO | {"steps": RANDOM | {"count": 6}},
            {},
            "steps.count is 6, but only 5 steps of the rollout can be trained on",
        ),
        (OPD | {"steps": RANDOM | {"count": 7}}, {}, "steps.count is 7, but only 6 steps"),
        (PG | {"steps": RANDOM | {"count": 6}}, {}, "steps.count is 6, but only 5 steps"),
        (
            OPD | {"steps": RANDOM | {"count": 6}},
            rollout(sampler="cps"),
            "steps.count is 6, but only 5 steps",
        ),
        (
            OPD | {"steps": RANDOM | {"count": 3}},
            rollout(sde_window=[1, 2]),
            "steps.count is 3, but only 2 steps",
        ),
        # Batches and updates.
        (GRPO, batch(shares="adaptive"), "batch.shares: adaptive follows the divergence from the"),
        (
            OPD | {"steps": RANDOM},
            batch(shares="adaptive", mixing="alternating"),
            "each would be of other steps",
        ),
        (
            OPD | {"updates_per_rollout": 2, "steps": SLIDING},
            {"updates": 10},
            "slide_every is 1, and a rollout serves 2 updates",
        ),
        (MIXED | {"log_reward": True}, {}, "log_reward would do nothing"),
        (GRPO | {"kl": 0, "weighting": "released"}, {}, "weighting would do nothing: kl is 0"),
        (
            OPD,
            ONE_TAUGHT | batch(shares="adaptive"),
            "adaptive would do nothing: there is one task",
        ),
        (OPD, ONE_TAUGHT | batch(mixing="alternating"), "alternating would do nothing: there is"),
        (OPD, batch(prompts=1), "batch.prompts is 1, fewer than the 2 tasks"),
        (
            GRPO | {"updates_per_rollout": 3},
            {},
            "updates is 8, which is no multiple of algorithm.updates_per_rollout (3)",
        ),
        (
            OPD,
            ONE_TAUGHT | {"interference_every": 2},
            "interference_every compares the gradients of tasks, and there is one task only",
        ),
        (
            OPD,
            batch(mixing="alternating") | {"interference_every": 2},
            "with batch.mixing: alternating an update has one task only",
        ),
        (OPD, {"ema": {"every": 9}}, "ema.every is 9, but there are only 8 updates"),
    ],
)
def test_what_is_refused(algorithm: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError) as caught:
        config(algorithm, **changes)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        (OPD, {}),
        (SFT, {}),
        (GRPO, {}),
        (NFT, {}),
        (PG, {}),
        (MIXED, {}),
        (OPD, {"tasks": {"a": task(teacher="t")}} | batch(images_per_prompt=1)),
        (OPD, {"start": "ta"}),
        (OPD | {"anchor": "quality"}, TO_ITSELF),
        (MIXED, TO_ITSELF),
        (OPD | {"student_guidance": 1.0}, TO_ITSELF),
        (OPD, {"start": "t", "tasks": {"a": task(teacher="t", teacher_guidance=4.5)}}),
        (NFT | {"times": 6}, rollout(sampler="ode", guidance=1.0)),
        (SFT, rollout(sampler="ode")),
        (OPD | {"weighting": "ode"}, rollout(sampler="ode")),
        (OPD | {"weighting": "uniform"}, rollout(sampler="ode")),
        (PG | {"student_guidance": 2.0}, {}),
        (OPD | {"student_guidance": 1.0}, {}),
        (GRPO | {"steps": RANDOM | {"count": 5}}, {}),
        (OPD | {"steps": RANDOM | {"count": 6}}, {}),
        (OPD | {"steps": RANDOM | {"count": 5}}, rollout(sampler="cps")),
        (OPD | {"weighting": "uniform", "steps": RANDOM}, rollout(sde_window=[0, 1])),
        (OPD, batch(shares="adaptive")),
        (OPD, batch(mixing="alternating", prompts=1)),
        (OPD, {"interference_every": 2, "ema": {"every": 8}}),
        (GRPO | {"updates_per_rollout": 4}, {}),
    ],
)
def test_what_is_right(algorithm: dict[str, Any], changes: dict[str, Any]) -> None:
    """Next to each refusal: a student may absorb guidance from itself, for one."""
    config(algorithm, **changes)


@pytest.mark.parametrize(
    ("algorithm", "changes", "steps"),
    [
        (OPD, {}, [0, 1, 2, 3, 4, 5]),
        (GRPO, {}, [0, 1, 2, 3, 4]),
        (PG, {}, [0, 1, 2, 3, 4]),
        (PG | {"weighting": "uniform"}, {}, [0, 1, 2, 3, 4]),
        (OPD, rollout(sampler="cps"), [0, 1, 2, 3, 4]),
        (OPD | {"weighting": "uniform"}, rollout(sampler="cps"), [0, 1, 2, 3, 4, 5]),
        (OPD | {"weighting": "ode"}, rollout(sampler="ode"), [0, 1, 2, 3, 4, 5]),
        (OPD, rollout(sde_window=[3, 3]), [3, 4, 5]),
        (GRPO, rollout(sde_window=[3, 3]), [3, 4]),
        (OPD | {"weighting": "uniform"}, rollout(sde_window=[3, 3]), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_steps_that_may_be_trained_on(
    algorithm: dict[str, Any], changes: dict[str, Any], steps: list[int]
) -> None:
    """The last step's std is near zero: it is sampled, and has no part in a ratio."""
    assert eligible_steps(config(algorithm, **changes)) == steps


def test_the_anchor_is_a_path_or_the_base() -> None:
    assert anchor_path(config(OPD)) is None
    assert anchor_path(config(GRPO)) is None
    assert anchor_path(config(OPD | {"anchor": "base"})) == "base"
    assert anchor_path(config(OPD | {"anchor": str(Path("a") / "b")})) == str(Path("a") / "b")


def test_what_cannot_be_divided_is_refused() -> None:
    check_processes(config(OPD), 8)
    with pytest.raises(FlowOPDError, match=r"8 images .* fewer than the 9 processes"):
        check_processes(config(OPD), 9)


def test_every_process_has_a_device_of_its_own() -> None:
    placed = config(OPD, model={"family": "sd3", "path": "p", "device": "cuda:1"})
    check_processes(placed, 1)
    with pytest.raises(FlowOPDError, match=r"model.device is cuda:1, and each of the 2 processes"):
        check_processes(placed, 2)
