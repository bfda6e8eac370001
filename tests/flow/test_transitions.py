"""Equations (2)-(6) and the weightings of (13), by identities and hand-computed values."""

import math

import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.flow import kl_weight, mean_log_prob, sigma_schedule, transition

KINDS = ["ode", "flow_sde", "cps"]
STOCHASTIC = ["flow_sde", "cps"]
STEPS = [(1.0, 0.96), (0.96, 0.9133), (0.7, 0.55), (0.278, 0.0089), (0.0089, 0.0)]
T_CLAMP = 0.96


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step(kind, t, t_next, *, seed=0, dtype=torch.float64, a=0.7, shape=(3, 2, 4)):
    x, v = normal(*shape, seed=seed, dtype=dtype), normal(*shape, seed=seed + 1, dtype=dtype)
    return transition(kind, x, v, t, t_next, noise_level=a, t_clamp=T_CLAMP)


def relative(found, expected):
    return float(((found - expected) / expected).abs().max())


class TestMeanAndStd:
    def test_ode_by_hand(self):
        x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -10.0]])
        move = transition("ode", x, v, 0.5, 0.25)
        assert move.mean.tolist() == [[-1.5, 4.5]]
        assert (move.std, move.gain, move.sigma, move.dt) == (0, -0.25, 0, -0.25)

    def test_flow_sde_by_hand(self):
        # t = 1/2: sigma = a = 0.8, sigma^2/(2t) = 0.64, dt = -1/4
        x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -10.0]])
        move = transition("flow_sde", x, v, 0.5, 0.25, noise_level=0.8)
        assert move.sigma.item() == pytest.approx(0.8)
        assert move.std.item() == pytest.approx(0.8 * 0.5)
        assert move.gain.item() == pytest.approx(-0.25 * 1.32)
        assert move.mean[0].tolist() == pytest.approx([0.84 - 3.3, 1.68 + 3.3])

    def test_cps_by_hand(self):
        # a = 1/3: sin = 1/2, t' = 0.4: s = 0.2; x0_hat = -1.5, x1_hat = 8.5 at t = 0.25
        x, v = torch.tensor([[1.0]]), torch.tensor([[10.0]])
        move = transition("cps", x, v, 0.25, 0.2, noise_level=1 / 3)
        assert move.std.item() == pytest.approx(0.1)
        kept = math.sqrt(0.04 - 0.01)
        assert move.mean.item() == pytest.approx(0.8 * -1.5 + kept * 8.5)
        assert move.gain.item() == pytest.approx(-0.25 * 0.8 + 0.75 * kept)

    @pytest.mark.parametrize("a", [0.0, 0.7, 1.0])
    def test_cps_keeps_the_noise_share_of_the_next_level(self, a):
        x0, x1, t, t_next = normal(2, 5), normal(2, 5, seed=1), 0.6, 0.4
        move = transition("cps", (1 - t) * x0 + t * x1, x1 - x0, t, t_next, noise_level=a)
        kept = (move.mean - (1 - t_next) * x0) / x1
        assert relative(kept**2 + move.std**2, torch.tensor(t_next**2, dtype=kept.dtype)) < 1e-9

    @pytest.mark.parametrize("kind", STOCHASTIC)
    @pytest.mark.parametrize(("t", "t_next"), STEPS)
    def test_without_noise_both_samplers_are_the_ode(self, kind, t, t_next):
        still, ode = step(kind, t, t_next, a=0.0), step("ode", t, t_next)
        torch.testing.assert_close(still.mean, ode.mean)
        torch.testing.assert_close(still.gain, ode.gain)
        assert still.std == 0

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("t", "t_next"), STEPS)
    def test_gain_is_the_numerical_derivative(self, kind, t, t_next):
        x, v, h = normal(1, 6), normal(1, 6, seed=1), 1e-4
        up, down = (
            transition(kind, x, v + sign * h, t, t_next, t_clamp=T_CLAMP) for sign in (1, -1)
        )
        assert relative((up.mean - down.mean) / (2 * h), up.gain) < 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    def test_gain_is_what_autograd_sees(self, kind):
        v = normal(2, 3, seed=1).requires_grad_()
        move = transition(kind, normal(2, 3), v, torch.tensor([1.0, 0.5]), 0.3, t_clamp=0.9)
        move.mean.sum().backward()
        torch.testing.assert_close(v.grad, move.gain[:, None].expand(2, 3))
        assert not move.gain.requires_grad

    def test_sample(self):
        move, noise = step("flow_sde", torch.tensor([0.9, 0.5, 0.1]), 0.05), normal(3, 2, 4, seed=7)
        expected = move.mean + move.std[:, None, None] * noise
        torch.testing.assert_close(move.sample(noise), expected)
        with pytest.raises(FlowOPDError, match="noise has shape"):
            move.sample(noise[:1])


class TestKL:
    @pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
    @pytest.mark.parametrize(("t", "t_next"), STEPS)
    def test_flow_sde_first_closed_form(self, t, t_next, a):
        move = step("flow_sde", t, t_next, a=a)
        inner = 1 / move.sigma + move.sigma * (1 - t) / (2 * t)
        assert relative(kl_weight(move), abs(t_next - t) / 2 * inner**2) < 1e-6

    @pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
    @pytest.mark.parametrize(("t", "t_next"), STEPS[1:])
    def test_flow_sde_second_closed_form_away_from_one(self, t, t_next, a):
        expected = abs(t_next - t) * (1 + a**2 / 2) ** 2 * (1 - t) / (2 * a**2 * t)
        found = kl_weight(step("flow_sde", t, t_next, a=a))
        assert relative(found, torch.tensor(expected, dtype=torch.float64)) < 1e-6

    def test_closed_forms_hold_in_float32_on_sd3s_grid(self):
        sigmas, a = sigma_schedule(10, shift=3.0), 0.7
        t, t_next = sigmas[1:-1], sigmas[2:]
        x = torch.zeros(len(t), 1)
        move = transition("flow_sde", x, x, t, t_next, noise_level=a)
        expected = (t - t_next) * (1 + a**2 / 2) ** 2 * (1 - t) / (2 * a**2 * t)
        assert relative(kl_weight(move), expected) < 1e-6

    @pytest.mark.parametrize("kind", STOCHASTIC)
    @pytest.mark.parametrize(("t", "t_next"), STEPS[:4])
    def test_weight_times_velocity_distance_is_torchs_kl(self, kind, t, t_next):
        x, v_student, v_teacher = (normal(2, 8, seed=seed) for seed in range(3))
        student, teacher = (
            transition(kind, x, v, t, t_next, t_clamp=T_CLAMP) for v in (v_student, v_teacher)
        )
        exact = torch.distributions.kl_divergence(
            torch.distributions.Normal(student.mean, student.std),
            torch.distributions.Normal(teacher.mean, teacher.std),
        )
        ours = kl_weight(student) * (v_student - v_teacher).square().sum(1)
        assert relative(ours, exact.sum(1)) < 1e-6

    @pytest.mark.parametrize("kind", STOCHASTIC)
    @pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.96), (0.6, 0.5)])
    def test_weight_equals_monte_carlo_within_its_error(self, kind, t, t_next):
        draws, dims = 20_000, 4
        x = normal(1, dims).expand(draws, dims)
        v_student, v_teacher = 10 * normal(1, dims, seed=1), 5 * normal(1, dims, seed=2)
        student, teacher = (
            transition(kind, x, v.expand(draws, dims), t, t_next, t_clamp=T_CLAMP)
            for v in (v_student, v_teacher)
        )
        x_next = student.sample(normal(draws, dims, seed=3))
        ratios = dims * (mean_log_prob(student, x_next) - mean_log_prob(teacher, x_next))
        error = float(ratios.std() / draws**0.5)
        expected = float(kl_weight(student) * (v_student - v_teacher).square().sum())
        assert error < 0.05 * expected
        assert float(ratios.mean()) == pytest.approx(expected, abs=4 * error)

    def test_every_weighting_by_its_definition(self):
        move = step("flow_sde", torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.96, 0.5, 0.1]))
        found = {name: kl_weight(move, name) for name in ("kl", "released", "uniform", "ode")}
        torch.testing.assert_close(found["kl"], move.gain**2 / (2 * move.std**2))
        torch.testing.assert_close(found["released"], move.gain**2 / (2 * move.sigma**2))
        torch.testing.assert_close(found["released"], found["kl"] * move.dt.abs())
        torch.testing.assert_close(found["ode"], move.dt**2 / 2)
        assert torch.equal(found["uniform"], torch.ones(3, dtype=torch.float64))
        values = torch.stack(list(found.values()))
        assert len(values.unique(dim=0)) == 4

    def test_released_weighting_of_cps_is_the_exact_one(self):
        move = step("cps", 0.6, 0.5)
        assert kl_weight(move, "released") == kl_weight(move, "kl")

    def test_unknown_weighting_is_refused(self):
        with pytest.raises(FlowOPDError, match="weighting 'exact' is unknown"):
            kl_weight(step("cps", 0.6, 0.5), "exact")


class TestLogProb:
    @pytest.mark.parametrize("kind", STOCHASTIC)
    @pytest.mark.parametrize(("t", "t_next"), STEPS[:4])
    def test_equals_torchs_normal(self, kind, t, t_next):
        move = step(kind, t, t_next)
        x_next = move.sample(normal(3, 2, 4, seed=5))
        expected = torch.distributions.Normal(move.mean, move.std).log_prob(x_next).flatten(1)
        found = mean_log_prob(move, x_next)
        assert found.shape == (3,)
        torch.testing.assert_close(found, expected.mean(1))

    def test_is_a_mean_that_does_not_grow_with_the_picture(self):
        small, large = (
            step("flow_sde", 0.6, 0.5, shape=(1, 8)),
            step("flow_sde", 0.6, 0.5, shape=(1, 8000)),
        )
        on_mean = [mean_log_prob(move, move.mean).item() for move in (small, large)]
        assert on_mean[0] == pytest.approx(on_mean[1])

    def test_cps_has_a_density_that_integrates_to_one(self):
        move = step("cps", 0.6, 0.5, shape=(1, 1))
        grid = torch.linspace(-6, 6, 4001, dtype=torch.float64) * move.std + move.mean[0]
        density = [mean_log_prob(move, point.view(1, 1)).exp().item() for point in grid]
        assert sum(density) * float(grid[1] - grid[0]) == pytest.approx(1, abs=1e-6)

    def test_ratio_before_the_first_update_is_one(self):
        move = step("flow_sde", 0.6, 0.5, dtype=torch.float32)
        x_next = move.sample(normal(3, 2, 4, seed=5, dtype=torch.float32))
        again = step("flow_sde", 0.6, 0.5, dtype=torch.float32)
        assert torch.equal(
            mean_log_prob(again, x_next) - mean_log_prob(move, x_next), torch.zeros(3)
        )

    def test_the_last_steps_tiny_std_is_finite_in_float32(self):
        last = sigma_schedule(10, shift=3.0)[-2]
        move = step("flow_sde", last, 0.0, dtype=torch.float32)
        assert 0 < move.std < 0.01
        assert mean_log_prob(move, move.sample(normal(3, 2, 4))).isfinite().all()
        assert mean_log_prob(move, move.mean + 1).isfinite().all()
        assert kl_weight(move).isfinite()

    def test_a_shape_that_would_broadcast_is_refused(self):
        move = step("flow_sde", 0.6, 0.5)
        with pytest.raises(FlowOPDError, match="x_next has shape"):
            mean_log_prob(move, move.mean[:1])


class TestDeterministicSteps:
    @pytest.mark.parametrize(("kind", "t_next"), [("ode", 0.5), ("cps", 0.0)])
    def test_have_no_density_and_no_kl(self, kind, t_next):
        move = step(kind, 0.6, t_next)
        assert move.std == 0
        with pytest.raises(FlowOPDError, match="no log-density"):
            mean_log_prob(move, move.mean)
        for weighting in ("kl", "released"):
            with pytest.raises(FlowOPDError, match="no KL"):
                kl_weight(move, weighting)
        assert kl_weight(move, "uniform") == 1
        assert kl_weight(move, "ode") == move.dt**2 / 2

    def test_one_deterministic_sample_in_the_batch_is_enough(self):
        move = step("cps", 0.6, torch.tensor([0.5, 0.3, 0.0]))
        with pytest.raises(FlowOPDError, match="no KL"):
            kl_weight(move)


class TestClampAtOne:
    def test_only_the_root_is_clamped(self):
        move = step("flow_sde", 1.0, 0.9)
        sigma = 0.7 * math.sqrt(T_CLAMP / (1 - T_CLAMP))
        assert move.sigma.item() == pytest.approx(sigma)
        assert move.gain.item() == pytest.approx(-0.1)
        expected = normal(3, 2, 4) * (1 - sigma**2 / 2 * 0.1) - normal(3, 2, 4, seed=1) * 0.1
        torch.testing.assert_close(move.mean, expected)

    def test_mean_density_and_kl_use_the_same_clamped_sigma(self):
        move = step("flow_sde", 1.0, 0.9)
        sigma = 0.7 * math.sqrt(T_CLAMP / (1 - T_CLAMP))
        std = sigma * math.sqrt(0.1)
        assert move.std.item() == pytest.approx(std)
        peak = -math.log(std) - 0.5 * math.log(2 * math.pi)
        assert mean_log_prob(move, move.mean)[0].item() == pytest.approx(peak)
        assert kl_weight(move).item() == pytest.approx(0.1 / (2 * sigma**2))

    def test_touches_no_other_sample_of_the_batch(self):
        t = torch.tensor([1.0, T_CLAMP, 0.5], dtype=torch.float64)
        clamped, plain = step("flow_sde", t, 0.4), step("flow_sde", t.clamp(max=T_CLAMP), 0.4)
        assert torch.equal(clamped.sigma, plain.sigma)
        assert torch.equal(clamped.mean[1:], plain.mean[1:])

    def test_may_be_one_for_each_sample(self):
        t = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
        x, v = normal(3, 4), normal(3, 4, seed=1)
        clamps = torch.tensor([0.9, 1.0, 0.8], dtype=torch.float64)
        together = transition("flow_sde", x, v, t, 0.4, t_clamp=clamps)
        for index, clamp in enumerate([0.9, 0.7, 0.8]):
            alone = transition("flow_sde", x, v, t, 0.4, t_clamp=clamp)
            assert together.sigma[index] == alone.sigma[index]
        with pytest.raises(FlowOPDError, match=r"t_clamp has shape \[2\]"):
            transition("flow_sde", x, v, t, 0.4, t_clamp=clamps[:2])
        with pytest.raises(FlowOPDError, match="singular at t = 1"):
            transition("flow_sde", x, v, t, 0.4, t_clamp=clamps.flip(0) + 0.1)

    @pytest.mark.parametrize("t_clamp", [None, 0.0, 1.0])
    def test_is_asked_for(self, t_clamp):
        x = torch.zeros(2, 3)
        with pytest.raises(FlowOPDError, match="singular at t = 1"):
            transition("flow_sde", x, x, torch.tensor([0.5, 1.0]), 0.4, t_clamp=t_clamp)

    @pytest.mark.parametrize("kind", ["ode", "cps"])
    def test_is_not_needed_by_the_other_samplers(self, kind):
        x = normal(2, 3)
        assert transition(kind, x, x, 1.0, 0.9).mean.isfinite().all()


class TestTimes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_per_sample_times_equal_scalar_calls(self, kind):
        t, t_next = torch.tensor([1.0, 0.96, 0.0089]), torch.tensor([0.96, 0.5, 0.0])
        x, v = normal(3, 2, 4, dtype=torch.float32), normal(3, 2, 4, seed=1, dtype=torch.float32)
        batch = transition(kind, x, v, t, t_next, t_clamp=T_CLAMP)
        for i in range(3):
            one = transition(
                kind, x[i : i + 1], v[i : i + 1], t[i].item(), t_next[i].item(), t_clamp=T_CLAMP
            )
            torch.testing.assert_close(batch.mean[i : i + 1], one.mean, rtol=0, atol=1e-6)
            for name in ("std", "gain", "sigma", "dt"):
                assert getattr(one, name).shape == ()
                assert getattr(batch, name).shape == (3,)
                torch.testing.assert_close(getattr(batch, name)[i], getattr(one, name))

    def test_a_tensor_t_with_a_number_t_next(self):
        move = step("flow_sde", torch.tensor([0.9, 0.8, 0.7]), 0.5)
        assert move.dt.tolist() == pytest.approx([-0.4, -0.3, -0.2])
        assert move.std.shape == (3,)

    @pytest.mark.parametrize("shape", [(3, 1), (2,), (1,)])
    def test_times_of_another_shape_are_refused(self, shape):
        with pytest.raises(FlowOPDError, match="t has shape"):
            step("ode", torch.full(shape, 0.5), 0.4)

    @pytest.mark.parametrize("kind", STOCHASTIC)
    @pytest.mark.parametrize(("t", "t_next"), [(0.4, 0.5), (0.5, 0.5), (1.1, 0.5), (0.5, -0.1)])
    def test_stochastic_steps_only_go_down(self, kind, t, t_next):
        with pytest.raises(FlowOPDError, match="must go down"):
            step(kind, t, t_next)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_coarse_times_are_refused(self, dtype):
        with pytest.raises(FlowOPDError, match="too coarse"):
            step("ode", torch.tensor(0.5, dtype=dtype), 0.4)


class TestPrecisionAndInputs:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_arithmetic_is_float32_whatever_the_network_gives(self, kind, dtype):
        x, v = normal(2, 3).to(dtype), normal(2, 3, seed=1).to(dtype)
        move = transition(kind, x, v, 0.6, 0.5)
        assert {move.mean.dtype, move.std.dtype, move.gain.dtype} == {torch.float32}
        assert torch.equal(move.mean, transition(kind, x.float(), v.float(), 0.6, 0.5).mean)

    def test_float64_stays(self):
        assert step("flow_sde", 0.6, 0.5).mean.dtype == torch.float64

    def test_x_and_v_must_have_one_shape(self):
        with pytest.raises(FlowOPDError, match="v has shape"):
            transition("ode", torch.zeros(4, 3), torch.zeros(4, 1), 0.6, 0.5)

    def test_unknown_kind_is_refused(self):
        with pytest.raises(FlowOPDError, match="kind 'sde' is unknown"):
            step("sde", 0.6, 0.5)

    @pytest.mark.parametrize(("kind", "a"), [("flow_sde", -0.1), ("cps", -0.1), ("cps", 1.1)])
    def test_noise_levels_out_of_range_are_refused(self, kind, a):
        with pytest.raises(FlowOPDError, match="noise_level is"):
            step(kind, 0.6, 0.5, a=a)
