"""Rollouts are lazy, keep nothing, leak no gradient mode, and mix stochastic and ODE steps."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.flow import (
    NoiseSource,
    Sampler,
    mean_log_prob,
    rollout,
    sde_window,
    sigma_schedule,
    transition,
)

SDE = Sampler("flow_sde", noise_level=0.7)
SIGMAS = sigma_schedule(6, shift=3.0)


class Network(nn.Module):
    """A little velocity with a parameter; remembers the times and gradient modes of its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.times, self.grad_modes = [], []

    def forward(self, x, t):
        self.times.append(t)
        self.grad_modes.append(torch.is_grad_enabled())
        return torch.tanh(self.scale * x) + t[:, None]


def x1(count=3):
    return NoiseSource(range(count)).draw((4,))


def walk(network=None, **options):
    if options.get("sampler", SDE).kind != "ode":
        options.setdefault("noise", NoiseSource([10, 11, 12]))
    options.setdefault("sampler", SDE)
    return rollout(network or Network(), x1(), SIGMAS, **options)


def test_steps_chain_and_carry_their_index_and_times():
    network = Network()
    steps = list(walk(network))
    assert [step.index for step in steps] == list(range(6))
    assert torch.equal(steps[0].x, x1())
    for step, following in pairwise(steps):
        assert torch.equal(step.x_next, following.x)
    for index, step in enumerate(steps):
        assert torch.equal(step.t, SIGMAS[index].expand(3))
        assert torch.equal(step.t_next, SIGMAS[index + 1].expand(3))
        assert torch.equal(network.times[index], step.t)
        assert step.transition.std.shape == (3,)


@pytest.mark.parametrize("kind", ["flow_sde", "cps"])
def test_a_step_is_its_transition_plus_its_noise(kind):
    same_noise = NoiseSource([10, 11, 12])
    for step in walk(sampler=Sampler(kind, noise_level=0.5)):
        expected = transition(
            kind,
            step.x,
            step.velocity,
            step.t,
            step.t_next,
            noise_level=0.5,
            t_clamp=float(SIGMAS[1]),
        )
        assert torch.equal(step.transition.mean, expected.mean.detach())
        drawn = expected.sample(same_noise.draw((4,))) if step.stochastic else expected.mean
        assert torch.equal(step.x_next, drawn.detach())


def test_the_velocity_is_not_called_ahead():
    network = Network()
    steps = walk(network)
    assert len(network.times) == 0
    for calls in range(1, 7):
        next(steps)
        assert len(network.times) == calls


def test_a_network_changed_between_steps_is_seen():
    network = Network()
    steps = walk(network, sampler=Sampler("ode"))
    next(steps)
    with torch.no_grad():
        network.scale.fill_(0.0)
    step = next(steps)
    assert torch.equal(step.velocity, step.t[:, None].expand(3, 4))


@pytest.mark.parametrize("outside", [True, False])
def test_gradient_modes_do_not_leak(outside):
    network = Network()
    with torch.set_grad_enabled(outside):
        steps = walk(network, grad_steps={1, 3})
        for _ in steps:
            assert torch.is_grad_enabled() is outside
        assert torch.is_grad_enabled() is outside
    assert network.grad_modes == [index in (1, 3) for index in range(6)]


def test_an_abandoned_rollout_leaves_the_gradient_mode_alone():
    steps = walk()
    next(steps)
    steps.close()
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_when_the_velocity_raises():
    def broken(x, t):
        raise RuntimeError("broken")

    steps = rollout(broken, x1(), SIGMAS)
    with pytest.raises(RuntimeError, match="broken"):
        next(steps)
    assert torch.is_grad_enabled()


def test_gradient_only_at_grad_steps_and_never_through_the_path():
    network = Network()
    start = x1().requires_grad_()
    for step in rollout(
        network, start, SIGMAS, sampler=SDE, noise=NoiseSource([0, 1, 2]), grad_steps=[2]
    ):
        assert step.velocity.requires_grad is (step.index == 2)
        assert step.transition.mean.requires_grad is (step.index == 2)
        assert not step.x.requires_grad
        assert not step.x_next.requires_grad
        if step.index == 2:
            (step.velocity**2).sum().backward()
            leaf = network.scale.detach().clone().requires_grad_()
            ((torch.tanh(leaf * step.x) + step.t[:, None]) ** 2).sum().backward()
            torch.testing.assert_close(network.scale.grad, leaf.grad)
    assert start.grad is None


def test_training_on_the_way_does_not_change_the_path():
    plain = [step.x_next for step in walk()]
    with_grad = [step.x_next for step in walk(grad_steps=range(6))]
    assert all(torch.equal(a, b) for a, b in zip(plain, with_grad, strict=True))


def test_nothing_of_the_path_is_kept():
    alive = []

    def velocity(x, t):
        gc.collect()
        assert all(reference() is None for reference in alive)
        return torch.tanh(x)

    for step in rollout(velocity, x1(), SIGMAS, grad_steps=range(6)):
        alive.append(weakref.ref(step.velocity))
        del step


def test_outside_the_window_steps_are_the_odes():
    sampler = Sampler("flow_sde", sde_steps=sde_window(2, 2))
    steps = list(walk(sampler=sampler))
    assert [step.stochastic for step in steps] == [False, False, True, True, False, False]
    for step in steps:
        ode = step.x + step.velocity * (step.t_next - step.t)[:, None]
        assert torch.equal(step.x_next, ode) is not step.stochastic
        assert bool((step.transition.std > 0).all()) is step.stochastic


def test_noise_outside_the_window_is_not_drawn():
    source, untouched = NoiseSource([10, 11, 12]), NoiseSource([10, 11, 12])
    list(walk(sampler=Sampler("cps", sde_steps=frozenset({1})), noise=source))
    untouched.draw((4,))
    assert torch.equal(source.state(), untouched.state())


def test_an_empty_window_is_the_ode_and_needs_no_noise():
    empty = rollout(Network(), x1(), SIGMAS, sampler=Sampler("cps", sde_steps=frozenset()))
    ode = walk(sampler=Sampler("ode"))
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(empty, ode, strict=True))


def test_the_last_step_is_drawn_by_flow_sde_and_certain_in_cps():
    *_, sde = walk()
    *_, cps = walk(sampler=Sampler("cps"))
    assert sde.stochastic
    assert mean_log_prob(sde.transition, sde.x_next).isfinite().all()
    assert not cps.stochastic
    assert torch.equal(cps.x_next, cps.transition.mean)


@pytest.mark.parametrize("kind", ["ode", "flow_sde", "cps"])
def test_samples_do_not_depend_on_the_batch_split(kind):
    def last(seeds):
        noise = NoiseSource(seeds)
        start = noise.draw((4,))
        *_, step = rollout(Network(), start, SIGMAS, sampler=Sampler(kind), noise=noise)
        return step.x_next

    assert torch.equal(last([1, 2, 3]), torch.cat([last([1]), last([2, 3])]))


def test_a_rollout_can_be_taken_up_in_the_middle():
    whole = list(walk())
    noise = NoiseSource([10, 11, 12])
    early = walk(noise=noise)
    state = [(next(early).x_next, noise.state()) for _ in range(3)][-1]
    resumed = NoiseSource([0, 0, 0])
    resumed.load_state(state[1])
    rest = rollout(Network(), state[0], SIGMAS[3:], sampler=SDE, noise=resumed)
    for step, expected in zip(rest, whole[3:], strict=True):
        assert torch.equal(step.x_next, expected.x_next)


@pytest.mark.parametrize(
    ("given", "inside"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_states_are_float32_or_better(given, inside):
    for step in rollout(
        lambda x, t: x.to(given), x1().to(given), SIGMAS, sampler=SDE, noise=NoiseSource([1, 2, 3])
    ):
        assert {step.x.dtype, step.x_next.dtype, step.t.dtype} == {inside}


class TestRefusals:
    """All of them when the rollout is asked for, before the network is touched."""

    @pytest.mark.parametrize("kind", ["flow_sde", "cps"])
    def test_a_stochastic_sampler_without_noise(self, kind):
        with pytest.raises(FlowOPDError, match="draws noise and got none"):
            rollout(Network(), x1(), SIGMAS, sampler=Sampler(kind))

    def test_noise_for_another_batch(self):
        with pytest.raises(FlowOPDError, match="has 2 samples, but x1 has 3"):
            walk(noise=NoiseSource([1, 2]))

    def test_steps_that_are_not_there(self):
        with pytest.raises(FlowOPDError, match=r"grad_steps names \[6\]"):
            walk(grad_steps=[5, 6])
        with pytest.raises(FlowOPDError, match=r"sde_steps names \[6, 7\]"):
            walk(sampler=Sampler("cps", sde_steps=sde_window(4, 4)))

    @pytest.mark.parametrize(("start", "size"), [(-1, 2), (0, 0)])
    def test_impossible_windows(self, start, size):
        with pytest.raises(FlowOPDError, match="SDE window"):
            sde_window(start, size)

    @pytest.mark.parametrize("levels", [[1.0], [0.5, 1.0], [1.0, 0.5, 0.5], [1.5, 0.0]])
    def test_levels_that_do_not_fall(self, levels):
        with pytest.raises(FlowOPDError, match="sigmas"):
            rollout(Network(), x1(), torch.tensor(levels))

    def test_a_velocity_of_another_shape(self):
        with pytest.raises(FlowOPDError, match="v has shape"):
            next(rollout(lambda x, t: x[:, :1], x1(), SIGMAS))

    def test_flow_sde_in_a_single_step(self):
        with pytest.raises(FlowOPDError, match="a schedule of one step has none"):
            rollout(Network(), x1(), sigma_schedule(1), sampler=SDE, noise=NoiseSource([1, 2, 3]))

    @pytest.mark.parametrize("window", [None, frozenset(), frozenset({0})])
    def test_an_unknown_kind(self, window):
        with pytest.raises(FlowOPDError, match="kind 'sde' is unknown"):
            walk(sampler=Sampler("sde", sde_steps=window))

    def test_gradients_in_inference_mode(self):
        lazy = walk(grad_steps=[2])
        with torch.inference_mode():
            assert len(list(walk())) == 6
            with pytest.raises(FlowOPDError, match=r"inside torch\.inference_mode\(\)"):
                walk(grad_steps=[2])
            with pytest.raises(FlowOPDError, match=r"inside torch\.inference_mode\(\)"):
                list(lazy)
