"""(10) and (17) against transcriptions in numpy."""

import numpy as np
import pytest
import torch

from flowopd.algorithms.flow_matching import diffusion_nft, flow_matching, noised
from flowopd.errors import FlowOPDError


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestFlowMatching:
    def test_noised_is_the_straight_line(self):
        x0, x1, t = normal(3, 2, 2), normal(3, 2, 2, seed=1), torch.tensor([0.0, 0.25, 1.0])
        found = noised(x0, x1, t.double())
        assert torch.equal(found[0], x0[0])
        assert torch.equal(found[2], x1[2])
        torch.testing.assert_close(found[1], 0.75 * x0[1] + 0.25 * x1[1])

    def test_the_loss_is_the_distance_from_noise_minus_data(self):
        velocity, x0, x1 = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
        expected = ((velocity - (x1 - x0)).numpy() ** 2).mean(1)
        np.testing.assert_allclose(flow_matching(velocity, x0, x1), expected, rtol=1e-12)
        assert flow_matching(x1 - x0, x0, x1).tolist() == [0, 0, 0]

    def test_the_velocity_is_the_slope_of_the_line(self):
        """SD3's convention: `dx/dt = x1 - x0`."""
        x0, x1 = normal(2, 3), normal(2, 3, seed=1)
        times = torch.tensor([0.6, 0.6, 0.5, 0.5], dtype=torch.float64)
        later, earlier = noised(x0.repeat(2, 1), x1.repeat(2, 1), times).chunk(2)
        assert flow_matching((later - earlier) / 0.1, x0, x1).max() < 1e-10

    def test_shapes_that_would_broadcast_are_refused(self):
        x = torch.zeros(4, 3)
        with pytest.raises(FlowOPDError, match="must have one shape"):
            flow_matching(x, x, x[:1])
        with pytest.raises(FlowOPDError, match="must have one shape"):
            noised(x, x[:, :1], torch.zeros(4))
        with pytest.raises(FlowOPDError, match=r"t has shape \[4, 1\]"):
            noised(x, x, torch.zeros(4, 1))


B, HIGHEST = 5, 4.0
ADVANTAGES = (-9.0, -1.0, 0.0, 2.0, 9.0)  # the outer ones are beyond the clip


class Case:
    def __init__(self, at_old=False, advantages=ADVANTAGES):
        self.old, self.x0, x1 = normal(B, 2, 3), normal(B, 2, 3, seed=1), normal(B, 2, 3, seed=2)
        self.t = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
        self.x_t = noised(self.x0, x1, self.t)
        self.student = self.old.clone() if at_old else normal(B, 2, 3, seed=3)
        self.student.requires_grad_()
        self.advantages = torch.tensor(advantages, dtype=torch.float64)

    def run(self, beta=0.7, highest=HIGHEST):
        found = diffusion_nft(
            self.student,
            self.old,
            self.x0,
            self.x_t,
            self.t,
            self.advantages,
            beta=beta,
            highest=highest,
        )
        (gradient,) = torch.autograd.grad(found.loss.sum(), self.student)
        return found, gradient


def by_hand(case, beta, highest):
    """(17) for one sample after the other."""
    losses = []
    for i in range(B):
        v, old, x0, x_t = (
            a[i].detach().numpy() for a in (case.student, case.old, case.x0, case.x_t)
        )
        t = float(case.t[i])
        r = min(1.0, max(0.0, float(case.advantages[i]) / (2 * highest) + 0.5))
        parts = []
        for mixed in (beta * v + (1 - beta) * old, (1 + beta) * old - beta * v):
            x0_hat = x_t - t * mixed
            parts.append(np.mean((x0_hat - x0) ** 2) / max(1e-5, np.mean(np.abs(x0_hat - x0))))
        losses.append(highest / beta * (r * parts[0] + (1 - r) * parts[1]))
    return np.array(losses)


class TestDiffusionNFT:
    @pytest.mark.parametrize("beta", [0.1, 0.7, 1.0])
    @pytest.mark.parametrize("highest", [4.0, 1.5])
    def test_against_numpy(self, beta, highest):
        case = Case()
        found, _ = case.run(beta, highest)
        np.testing.assert_allclose(found.loss.detach(), by_hand(case, beta, highest), rtol=1e-10)

    def test_optimality_is_clipped_to_zero_and_one(self):
        found, _ = Case().run()
        assert found.optimality.tolist() == [0, 0.375, 0.5, 0.75, 1]
        assert not found.optimality.requires_grad

    @pytest.mark.parametrize("beta", [0.1, 0.7, 1.0])
    def test_at_the_old_policy_the_gradient_is_linear_in_the_advantage(self, beta):
        """`-2 A t (x0_hat - x0) / (D w)`: away from the picture or towards it, whatever beta."""
        case = Case(at_old=True)
        _, gradient = case.run(beta)
        error = case.x_t - case.t[:, None, None] * case.old - case.x0
        w = error.abs().flatten(1).mean(1)
        clipped = case.advantages.clamp(-HIGHEST, HIGHEST)
        expected = (-2 * clipped * case.t / (6 * w))[:, None, None] * error
        torch.testing.assert_close(gradient, expected)

    def test_at_the_old_policy_an_average_picture_says_nothing(self):
        _, gradient = Case(at_old=True, advantages=[0.0] * B).run()
        assert gradient.abs().max() < 1e-12

    def test_a_good_picture_pulls_and_a_bad_one_pushes(self):
        case = Case(at_old=True, advantages=[3.0, -3.0, 3.0, -3.0, 3.0])
        _, gradient = case.run()
        towards = (case.x_t - case.x0) / case.t[:, None, None] - case.old
        along = -(gradient * towards).flatten(1).sum(1)
        assert along.sign().tolist() == [1, -1, 1, -1, 1]

    def test_the_scale_of_the_error_has_no_gradient(self):
        """With r = 1, beta = 1 the loss is `A_max e^2 / sg|e|`: the gradient by e is twice that."""
        case = Case(advantages=[9.0] * B)
        _, gradient = case.run(beta=1.0)
        error = (case.x_t - case.t[:, None, None] * case.student - case.x0).detach()
        w = error.abs().flatten(1).mean(1)
        expected = (-2 * HIGHEST * case.t / (6 * w))[:, None, None] * error
        torch.testing.assert_close(gradient, expected)

    def test_a_perfect_reconstruction_is_finite(self):
        case = Case(at_old=True)
        with torch.no_grad():
            exact = (case.x_t - case.x0) / case.t[:, None, None]
            case.old.copy_(exact)
            case.student.copy_(exact)
        found, gradient = case.run()
        assert found.loss.abs().max() < 1e-6
        assert gradient.isfinite().all()

    def test_only_the_student_has_a_gradient(self):
        case = Case()
        case.old.requires_grad_()
        inputs = [case.student, case.old]
        again = diffusion_nft(
            *inputs, case.x0, case.x_t, case.t, case.advantages, beta=1.0, highest=HIGHEST
        )
        assert torch.autograd.grad(again.loss.sum(), inputs, allow_unused=True)[1] is None

    @pytest.mark.parametrize("name", ["t", "advantages"])
    def test_a_column_is_refused(self, name):
        case = Case()
        setattr(case, name, getattr(case, name)[:, None])
        with pytest.raises(FlowOPDError, match=rf"{name} has shape \[5, 1\]"):
            case.run()

    def test_velocities_of_another_shape_are_refused(self):
        case = Case()
        case.old = case.old[:, :1]
        with pytest.raises(FlowOPDError, match=r"must have one shape.*old \[5, 1, 3\]"):
            case.run()
