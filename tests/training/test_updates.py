"""Each algorithm at work on a linear model: what is equal has to be equal, and routes matter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, config_for, data_for, make, make_teacher
from torch import Tensor

from flowopd.algorithms.advantages import Advantages
from flowopd.config import build
from flowopd.files import sha256
from flowopd.policy.bank import Role
from flowopd.training.config import TrainConfig
from flowopd.training.eligible import eligible_steps
from flowopd.training.estimate import estimate
from flowopd.training.method import Batch

pytestmark = pytest.mark.usefixtures("fake_plugins")

ANCHORED = {"anchor": {"adapter": "base", "weight": 0.5}}
GRADIENT_CASES = [
    {"weighting": "kl"},
    {"weighting": "released", **ANCHORED},
    {"weighting": "uniform", "steps": {"choose": "random", "count": 2}},
    {"weighting": "kl", "steps": {"choose": "stratified", "count": 2, "ode_elsewhere": True}},
]


@pytest.mark.parametrize("keys", GRADIENT_CASES)
def test_fused_and_stored_paths_give_the_same_gradient(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    fused = make(tmp_path, config_for(tmp_path, {"name": "opd", "path": "fused", **keys}))
    stored = make(tmp_path, config_for(tmp_path, {"name": "opd", "path": "stored", **keys}))
    torch.testing.assert_close(fused.gradient, stored.gradient, rtol=1e-5, atol=1e-8)
    assert fused.gradient.norm() > 1e-4


def test_with_guidance_fused_and_stored_agree_too(tmp_path: Path) -> None:
    keys = {"name": "opd", "student_guidance": 1.0}
    rollout = {"steps": 4, "guidance": 3.0}
    fused = make(tmp_path, config_for(tmp_path, keys, rollout=rollout))
    stored = make(tmp_path, config_for(tmp_path, {**keys, "path": "stored"}, rollout=rollout))
    same = make(tmp_path, config_for(tmp_path, {"name": "opd"}, rollout=rollout))
    torch.testing.assert_close(fused.gradient, stored.gradient, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(fused.gradient, same.gradient, rtol=1e-2)


def test_the_closed_form_of_the_pathwise_gradient(tmp_path: Path) -> None:
    """(13) written out once more by hand, on states that the rollout visits."""
    made = make(tmp_path, config_for(tmp_path, {"name": "opd", "weighting": "uniform"}))
    gradient = made.gradient
    parameters = [p for _, p in made.context.bank.trainable_parameters()]
    for parameter in parameters:
        parameter.grad = None
    total = torch.zeros(())
    for sample in made.samples:
        total = total + _loss_of_one(made, sample)
    (total / len(made.samples)).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in parameters])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def _loss_of_one(made: Any, sample: Any) -> torch.Tensor:
    from flowopd.flow import NoiseSource, Sampler, rollout

    bank, model = made.context.bank, made.context.model
    cond = model.encode_prompts([sample.record.prompt])
    x1 = NoiseSource([sample.start_seed]).draw((3, 8, 8))
    with bank.using(bank.student):
        states = [
            (step.x, step.t)
            for step in rollout(
                lambda x, t: model.velocity(x, t, cond),
                x1,
                made.context.sigmas,
                sampler=Sampler("flow_sde", 0.7),
                noise=NoiseSource([sample.seed]),
            )
        ]
    total = torch.zeros(())
    for x, t in states:
        with bank.using(made.context.roles.teachers[sample.task]), torch.no_grad():
            target = model.velocity(x, t, cond)
        with bank.using(bank.student):
            total = total + (model.velocity(x, t, cond) - target).square().mean()
    return total / len(states)


def test_two_teachers_of_one_weight_are_one_teacher(tmp_path: Path) -> None:
    data = data_for(tmp_path, {"name": "opd"})
    one, two = (make_teacher(tmp_path / name, seed=5) for name in ("one", "two"))
    for task in data["tasks"].values():
        task["teacher"] = str(one)
    alone = make(tmp_path, build(TrainConfig, data)).gradient
    data["tasks"]["words"]["teacher"] = str(two)
    torch.testing.assert_close(make(tmp_path, build(TrainConfig, data)).gradient, alone)
    data["tasks"]["words"]["teacher"] = str(make_teacher(tmp_path / "other", seed=6))
    routed = make(tmp_path, build(TrainConfig, data)).gradient
    assert not torch.allclose(routed, alone, rtol=1e-2)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "sft"])
def test_order_and_micro_batches_change_nothing_but_rounding(tmp_path: Path, name: str) -> None:
    made = make(tmp_path, config_for(tmp_path, ALGORITHMS[name]))
    expected = made.gradient
    order = torch.randperm(len(made.samples), generator=torch.Generator().manual_seed(1))
    shuffled = made.gradients([made.samples[int(i)] for i in order])[0]
    torch.testing.assert_close(shuffled, expected, rtol=2e-4, atol=1e-7)
    batch = {"prompts": 4, "images_per_prompt": 2, "micro": 8}
    whole = make(tmp_path, config_for(tmp_path, ALGORITHMS[name], batch=batch)).gradient
    torch.testing.assert_close(whole, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["grpo", "pg"])
def test_the_ratio_before_the_first_update_is_1(tmp_path: Path, name: str) -> None:
    made = make(tmp_path, config_for(tmp_path, ALGORITHMS[name]))
    made.gradients()
    assert made.context.meter.take(made.context.ranks)["ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_groups_without_spread_give_nothing_and_no_kl(
    tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of the others alone, but for the size of the batch."""
    made = make(tmp_path, config_for(tmp_path, ALGORITHMS["grpo"]))
    dead = {made.samples[0].group, made.samples[-1].group}
    alive = [sample for sample in made.samples if sample.group not in dead]

    def advantages(batch: Batch, rewards: Tensor, **_: Any) -> Advantages:
        used = torch.tensor([sample.group not in dead for sample in batch.samples])
        return Advantages(torch.where(used, torch.sin(batch.groups + 1.0), 0.0), used, 0.5)

    monkeypatch.setattr(made.method, "task_advantages", advantages)
    monkeypatch.setattr(type(made.context.roles.student), "shared", shared)
    forwards = made.context.velocities.forwards
    found = made.gradients()[0]
    forwards = made.context.velocities.forwards - forwards
    share = len(alive) / len(made.samples)
    assert share == 0.5
    torch.testing.assert_close(found, share * made.gradients(alive)[0], rtol=1e-4, atol=1e-8)
    drawn, trained = 4 * len(made.samples), 3 * 2 * len(made.samples)
    assert forwards == drawn + (trained if shared else trained // 2)


def test_a_rollout_that_serves_two_updates_has_the_same_first_gradient(tmp_path: Path) -> None:
    once = make(tmp_path, config_for(tmp_path, {"name": "opd"}))
    twice = make(tmp_path, config_for(tmp_path, {"name": "opd", "updates_per_rollout": 2}))
    gradients = twice.gradients()
    assert len(gradients) == 2
    torch.testing.assert_close(gradients[0], once.gradient, rtol=1e-5, atol=1e-8)


def test_distilling_needs_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_for(tmp_path, {"name": "opd"})
    for task in data["tasks"].values():
        del task["reward"]
    made = make(tmp_path, build(TrainConfig, data | {"scorers": []}))
    monkeypatch.setattr(made.context.model, "decode", lambda _: pytest.fail("a picture was made"))
    assert made.gradient.norm() > 0


def test_log_reward_changes_the_log_and_not_the_gradient(tmp_path: Path) -> None:
    for path in ("fused", "stored"):
        plain = make(tmp_path, config_for(tmp_path, {"name": "opd", "path": path}))
        logged = make(
            tmp_path, config_for(tmp_path, {"name": "opd", "path": path, "log_reward": True})
        )
        torch.testing.assert_close(logged.gradient, plain.gradient)
        values = logged.context.meter.take(logged.context.ranks)
        assert 0 < values["task/words/reward"] < 1
        assert "task/words/reward" not in plain.context.meter.take(plain.context.ranks)


def test_the_anchor_acts_on_every_sample_and_on_a_share_without_bias(tmp_path: Path) -> None:
    anchored = {"name": "opd", "anchor": {"adapter": "base", "weight": 0.5}}
    batch = {"prompts": 4, "images_per_prompt": 2, "micro": 4}
    plain = make(tmp_path, config_for(tmp_path, {"name": "opd"}, batch=batch)).gradient
    whole = make(tmp_path, config_for(tmp_path, anchored, batch=batch)).gradient - plain
    share = {"name": "opd", "anchor": {"adapter": "base", "weight": 0.5, "share": 0.5}}
    made = make(tmp_path, config_for(tmp_path, share, batch=batch))
    draws = []
    for number in range(150):
        made.context.round = number
        draws.append(made.gradient - plain)
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / len(draws) ** 0.5
    assert ((mean - whole).abs() < 4.5 * error + 1e-7).all()
    assert draws[0].norm() > 0
    assert not torch.allclose(draws[0], whole, rtol=1e-2)


def test_an_anchor_adapter_is_not_the_base(tmp_path: Path) -> None:
    adapter = make_teacher(tmp_path / "anchor", seed=8)
    base = make(tmp_path, config_for(tmp_path, {"name": "opd", **ANCHORED}))
    other = {"name": "opd", "anchor": {"adapter": str(adapter), "weight": 0.5}}
    assert not torch.allclose(make(tmp_path, config_for(tmp_path, other)).gradient, base.gradient)
    assert base.context.roles.anchor is None


def test_a_file_that_is_teacher_twice_is_loaded_once(tmp_path: Path) -> None:
    data = data_for(tmp_path, {"name": "opd"})
    one = str(make_teacher(tmp_path / "one", seed=5))
    for task in data["tasks"].values():
        task["teacher"] = one
    data["algorithm"]["anchor"] = one
    made = make(tmp_path, build(TrainConfig, data))
    assert [info.role for info in made.context.bank.adapters.values()] == [
        Role.STUDENT,
        Role.TEACHER,
    ]
    assert made.context.roles.anchor == made.context.roles.teachers["words"]


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_teachers_never_change_and_only_the_student_has_gradients(
    tmp_path: Path, name: str
) -> None:
    made = make(tmp_path, config_for(tmp_path, ALGORITHMS[name]))
    bank = made.context.bank
    frozen = {key for key in bank.adapters if key != bank.student}
    before = {key: {k: t.clone() for k, t in bank.state_dict(key).items()} for key in frozen}
    made.gradients()
    for key in frozen:
        for k, tensor in bank.state_dict(key).items():
            assert torch.equal(tensor, before[key][k])
    with_gradient = [p for p in made.context.model.transformer.parameters() if p.grad is not None]
    assert len(with_gradient) == len(bank.trainable_parameters())


@pytest.mark.parametrize(
    ("name", "guidance"),
    [(name, w) for name in ALGORITHMS for w in (1.0, 2.5) if (name, w) != ("nft", 2.5)],
)
def test_the_estimate_is_what_it_takes(tmp_path: Path, name: str, guidance: float) -> None:
    rollout = {"steps": 4, "guidance": guidance, "sampler": "flow_sde"}
    config = config_for(tmp_path, ALGORITHMS[name], rollout=rollout, updates=1)
    made = make(tmp_path, config)
    made.gradients()
    expected = estimate(config)
    assert made.context.images == expected.images
    assert made.context.velocities.forwards == expected.forwards


@pytest.mark.parametrize("name", ["grpo", "nft", "opd"])
def test_noise_is_drawn_in_the_window_alone(tmp_path: Path, name: str) -> None:
    rollout = {"steps": 4, "guidance": 1.0, "sampler": "flow_sde", "sde_window": [1, 2]}
    plain = make(tmp_path / "a", config_for(tmp_path, ALGORITHMS[name]))
    inside = make(tmp_path / "b", config_for(tmp_path, ALGORITHMS[name], rollout=rollout))
    assert inside.method.sampler().sde_steps == {1, 2}
    assert not torch.allclose(inside.gradient, plain.gradient, rtol=1e-2)


def test_a_moving_window_stays_within_the_steps_that_may_be_noisy(tmp_path: Path) -> None:
    rollout = {"steps": 6, "guidance": 1.0, "sampler": "flow_sde", "sde_window": [1, 3]}
    steps = {"choose": "window", "count": 2, "ode_elsewhere": True}
    config = config_for(tmp_path, {**ALGORITHMS["grpo"], "steps": steps}, rollout=rollout)
    assert eligible_steps(config) == [1, 2, 3]
    method = make(tmp_path, config).method
    assert method.sampler([2, 3]).kind_at(1) == "ode"
    assert method.sampler([2, 3]).kind_at(2) == "flow_sde"


def test_pools_of_another_teacher_are_not_used(tmp_path: Path) -> None:
    make(tmp_path / "run", config_for(tmp_path, ALGORITHMS["sft"]))
    before = {file.name: sha256(file) for file in (tmp_path / "run" / "pool").iterdir()}
    data = data_for(tmp_path, ALGORITHMS["sft"])
    make_teacher(tmp_path / "teacher-words", seed=50)
    make(tmp_path / "run", build(TrainConfig, data))
    after = {file.name: sha256(file) for file in (tmp_path / "run" / "pool").iterdir()}
    changed = {name.split("-")[0] for name in before if before[name] != after[name]}
    assert changed == {"words"}


def test_pools_of_teachers_pictures_are_drawn_once(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["sft"])
    first = make(tmp_path / "run", config)
    files = sorted((tmp_path / "run" / "pool").iterdir())
    digests = [sha256(file) for file in files]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    again = make(tmp_path / "run", config)
    assert [sha256(file) for file in files] == digests
    assert torch.equal(first.gradient, again.gradient)
    assert first.context.images == again.context.images == 20


def test_pools_do_not_depend_on_what_goes_through_the_network_at_once(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["sft"])
    first = make(tmp_path / "run", config)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "pool").iterdir()}
    batch = {"prompts": 4, "images_per_prompt": 2, "micro": 8}
    again = make(tmp_path / "run", config_for(tmp_path, ALGORITHMS["sft"], batch=batch))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    torch.testing.assert_close(again.gradient, first.gradient, rtol=1e-4, atol=1e-7)
    assert again.context.velocities.forwards == first.context.velocities.forwards


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("opd", {"weighting": "ode"}),
    ("opd", {"weighting": "released"}),
    ("opd", {"steps": {"choose": "random", "count": 1}}),
    ("opd", {"steps": {"choose": "beta", "count": 1}}),
    ("opd", {"steps": {"choose": "beta", "count": 1, "reweight": False}}),
    ("opd", {"steps": {"choose": "window", "count": 2}}),
    ("opd", {"path": "stored", "loss": "mixed"}),
    ("opd", {"steps": {"choose": "random", "count": 1, "ode_elsewhere": True}}),
    ("opd", {"loss": "both"}),
    ("pg", {"horizon": "step"}),
    ("pg", {"normalise": False}),
    ("pg", {"advantage_clip": 0.5}),
    ("grpo", {"kl": 0.0}),
    ("grpo", {"weighting": "released"}),
    ("grpo", {"spread": "group"}),
    ("grpo", {"advantage_clip": 0.5}),
    ("nft", {"beta": 0.5}),
    ("nft", {"kl": 1.0}),
    ("nft", {"times": 3}),
    ("nft", {"spread": "group"}),
    ("nft", {"advantage_clip": 0.5}),
    ("sft", {"t_mean": 1.0}),
    ("sft", {"t_std": 0.5}),
    ("sft", {"images_per_task": 3}),
]


@pytest.mark.parametrize(("name", "keys"), OPTIONS)
def test_every_option_changes_the_gradient(tmp_path: Path, name: str, keys: Any) -> None:
    plain = make(tmp_path / "a", config_for(tmp_path, ALGORITHMS[name])).gradient
    changed = make(tmp_path / "b", config_for(tmp_path, {**ALGORITHMS[name], **keys})).gradient
    assert not torch.allclose(plain, changed, rtol=1e-3, atol=0)
