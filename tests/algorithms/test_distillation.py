"""(9), (13), (14) and (16) as functions of tensors."""

import numpy as np
import pytest
import torch

from flowopd.algorithms.distillation import (
    charged,
    divergence_advantages,
    weighted_divergence,
)
from flowopd.errors import FlowOPDError
from flowopd.flow import kl_weight, transition


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestWeightedDivergence:
    def test_against_numpy_with_its_gradient(self):
        student, target = normal(3, 2, 4).requires_grad_(), normal(3, 2, 4, seed=1)
        weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
        loss = weighted_divergence(student, target, weight)
        error = student.detach().numpy() - target.numpy()
        expected = weight.numpy() * np.mean(error**2, axis=(1, 2))
        np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        by_hand = 2 * weight.numpy()[:, None, None] * error / 8
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-12)

    @pytest.mark.parametrize(
        ("kind", "t", "t_next"),
        [
            ("flow_sde", 1.0, 0.9),
            ("flow_sde", 0.6, 0.5),
            ("flow_sde", 0.01, 0.0),
            ("cps", 0.6, 0.5),
        ],
    )
    def test_is_the_kl_of_the_two_steps_as_gaussians(self, kind, t, t_next):
        """(6), by torch's own KL between normal distributions; a mean over dimensions."""
        x, v_S, v_T = normal(3, 5), normal(3, 5, seed=1), normal(3, 5, seed=2)
        moves = [transition(kind, x, v, t, t_next, t_clamp=0.9) for v in (v_S, v_T)]
        student, teacher = (torch.distributions.Normal(m.mean, m.std) for m in moves)
        kl = torch.distributions.kl_divergence(student, teacher).mean(1)
        weight = kl_weight(moves[0], "kl").expand(3)
        torch.testing.assert_close(weighted_divergence(v_S, v_T, weight), kl)

    def test_the_target_never_gets_a_gradient(self):
        student, target = normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
        weighted_divergence(student, target, torch.ones(2)).sum().backward()
        assert target.grad is None
        assert student.grad is not None

    def test_at_the_teacher_loss_and_gradient_are_zero(self):
        student = normal(2, 3).requires_grad_()
        loss = weighted_divergence(student, student.detach().clone(), torch.ones(2))
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.tolist() == [0, 0]
        assert not gradient.any()

    @pytest.mark.parametrize(
        ("student", "target", "weight", "sentence"),
        [
            (
                (4, 3),
                (4, 1),
                (4,),
                r"must have one shape, and have: student \[4, 3\], target \[4, 1",
            ),
            ((4, 3), (1, 3), (4,), "must have one shape"),
            ((4, 3), (4, 3), (4, 1), r"weight has shape \[4, 1\]"),
            ((4, 3), (4, 3), (), r"weight has shape \[\]"),
            ((4,), (4,), (4,), r"must be \[B, ...\]"),
        ],
    )
    def test_shapes_that_would_broadcast_are_refused(self, student, target, weight, sentence):
        with pytest.raises(FlowOPDError, match=sentence):
            weighted_divergence(torch.zeros(student), torch.zeros(target), torch.zeros(weight))


class TestCharged:
    costs = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])

    def test_a_step_pays_for_itself_or_for_all_that_follows_too(self):
        assert charged(self.costs, "step").tolist() == self.costs.tolist()
        assert charged(self.costs, "trajectory").tolist() == [[7, 70], [6, 60], [4, 40]]

    @pytest.mark.parametrize("horizon", ["step", "trajectory"])
    def test_is_detached(self, horizon):
        """Not detaching is where all of the released code's signal comes from."""
        assert not charged(self.costs.clone().requires_grad_(), horizon).requires_grad

    def test_wants_steps_and_samples(self):
        with pytest.raises(FlowOPDError, match=r"divergences has shape \[3\]"):
            charged(torch.zeros(3), "step")
        with pytest.raises(FlowOPDError, match=r"divergences has shape \[3, 2, 1\]"):
            charged(torch.zeros(3, 2, 1), "step")


class TestDivergenceAdvantages:
    costs = normal(3, 6).square() * torch.tensor([1.0, 1, 1, 100, 100, 100])
    pools = torch.tensor([0, 0, 0, 1, 1, 1])

    def advantages(self, **keys):
        defaults = {"horizon": "step", "normalise": True, "clip": 5.0}
        return divergence_advantages(self.costs, self.pools, **(defaults | keys))

    def test_plain_are_minus_the_cost(self):
        found = self.advantages(normalise=False, clip=1e9)
        assert found.tolist() == (-self.costs).tolist()

    @pytest.mark.parametrize("horizon", ["step", "trajectory"])
    def test_normalised_within_a_task_and_a_step(self, horizon):
        costs = self.costs.numpy()
        if horizon == "trajectory":
            costs = np.stack([costs[k:].sum(0) for k in range(3)])
        expected = np.empty_like(costs)
        for k in range(3):
            for own in (slice(0, 3), slice(3, 6)):
                cost = costs[k, own]
                expected[k, own] = (cost.mean() - cost) / cost.std()
        np.testing.assert_allclose(self.advantages(horizon=horizon), expected, rtol=1e-9)

    def test_tasks_have_one_scale(self):
        found = self.advantages()
        assert found[:, :3].square().mean() == pytest.approx(1)
        assert found[:, 3:].square().mean() == pytest.approx(1)

    def test_are_clipped(self):
        for normalise in (True, False):
            found = self.advantages(normalise=normalise, clip=0.1)
            assert found.abs().max() == pytest.approx(0.1)

    def test_a_lower_divergence_has_the_higher_advantage(self):
        found = self.advantages()
        assert torch.equal(found[:, :3].argsort(1), self.costs[:, :3].argsort(1, descending=True))

    def test_equal_costs_and_single_samples_give_zero(self):
        costs = torch.tensor([[3.0, 3.0, 5.0], [0.0, 0.0, 7.0]])
        found = divergence_advantages(
            costs, torch.tensor([0, 0, 1]), horizon="step", normalise=True, clip=5.0
        )
        assert found.tolist() == [[0, 0, 0], [0, 0, 0]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("count", [3, 7, 48])
    def test_rounding_is_not_blown_up_to_advantages(self, count, dtype):
        """One group from one noise has one cost at the first step, up to rounding."""
        for cost in (0.1, 0.3, 0.7):
            costs = torch.full((2, count), cost, dtype=dtype)
            costs[1, 0] *= 1 + 4 * torch.finfo(dtype).eps
            pools = torch.zeros(count, dtype=torch.int64)
            found = divergence_advantages(costs, pools, horizon="step", normalise=True, clip=5.0)
            assert found.abs().max() < 0.01

    def test_small_costs_are_blown_up_all_the_same(self):
        found = divergence_advantages(
            1e-9 * self.costs, self.pools, horizon="step", normalise=True, clip=5.0
        )
        torch.testing.assert_close(found, self.advantages())

    def test_pools_of_another_shape_are_refused(self):
        with pytest.raises(FlowOPDError, match=r"pools has shape \[6, 1\]"):
            divergence_advantages(
                self.costs, self.pools[:, None], horizon="step", normalise=True, clip=5.0
            )
