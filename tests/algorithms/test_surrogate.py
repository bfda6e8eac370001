"""(8) against a transcription in numpy."""

import math

import numpy as np
import pytest
import torch

from flowopd.algorithms.surrogate import clipped_surrogate
from flowopd.errors import FlowOPDError
from flowopd.flow import mean_log_prob, transition


def surrogate(log_ratio, advantages, clip=0.2, old=0.0):
    log_ratio = torch.tensor(log_ratio, dtype=torch.float64)
    old = torch.full_like(log_ratio, old)
    log_prob = (old + log_ratio).requires_grad_()
    found = clipped_surrogate(
        log_prob, old, torch.tensor(advantages, dtype=torch.float64), clip=clip
    )
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_prob)
    return found, gradient


def test_the_four_corners():
    """Ratio out of range on either side, with an advantage of either sign."""
    up, down = math.log(1.5), math.log(0.5)
    found, gradient = surrogate([up, up, down, down], [2.0, -2.0, 2.0, -2.0])
    assert found.loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    assert found.clipped.tolist() == [1, 0, 0, 1]
    assert gradient.tolist() == pytest.approx([0, 3.0, -1.0, 0])
    assert found.ratio.tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5])


def test_random_numbers_against_numpy():
    rng = np.random.default_rng(0)
    log_ratio, advantages = rng.normal(size=64) * 0.3, rng.normal(size=64)
    found, gradient = surrogate(log_ratio, advantages, clip=0.1, old=-1.3)
    ratio = np.exp(log_ratio)
    plain, cut = ratio * advantages, np.clip(ratio, 0.9, 1.1) * advantages
    np.testing.assert_allclose(found.loss.detach(), -np.minimum(plain, cut), rtol=1e-9)
    np.testing.assert_allclose(gradient, np.where(cut < plain, 0, -plain), rtol=1e-9)
    np.testing.assert_allclose(found.clipped, cut < plain)


def test_on_policy_the_ratio_is_one_and_the_gradient_is_the_score():
    found, gradient = surrogate([0.0, 0.0, 0.0], [1.5, -0.5, 0.0], clip=1e-4)
    assert found.ratio.tolist() == [1, 1, 1]
    assert found.clipped.tolist() == [0, 0, 0]
    assert gradient.tolist() == [-1.5, 0.5, 0.0]


def test_the_clip_range_changes_the_loss():
    narrow, _ = surrogate([0.1], [1.0], clip=1e-4)
    wide, _ = surrogate([0.1], [1.0], clip=0.2)
    assert narrow.loss.item() == pytest.approx(-1.0001)
    assert wide.loss.item() == pytest.approx(-math.exp(0.1))


def test_the_old_policy_has_no_gradient():
    new, old = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    found = clipped_surrogate(new, old, torch.ones(2), clip=0.1)
    found.loss.sum().backward()
    assert old.grad is None
    assert new.grad is not None
    assert not found.ratio.requires_grad
    assert not found.clipped.requires_grad


def test_the_score_of_a_real_step():
    """The gradient by the velocity is `-A (x' - mu) gain / (D s^2)`."""
    generator = torch.Generator().manual_seed(0)
    x, v, noise = (torch.randn(3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    v.requires_grad_()
    move = transition("flow_sde", x, v, 0.6, 0.5)
    x_next = move.sample(noise).detach()
    log_prob = mean_log_prob(move, x_next)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    loss = clipped_surrogate(log_prob, log_prob.detach(), advantages, clip=1e-4).loss
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    score = (x_next - move.mean) * move.gain / (8 * move.std**2)
    torch.testing.assert_close(gradient, (-advantages[:, None, None] * score).detach())


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_column_is_refused(wrong):
    tensors = [torch.zeros(4), torch.zeros(4), torch.zeros(4)]
    tensors[wrong] = tensors[wrong][:, None]
    name = ["log_prob", "old_log_prob", "advantages"][wrong]
    with pytest.raises(FlowOPDError, match=rf"^{name} has shape \[4, 1\]"):
        clipped_surrogate(*tensors, clip=0.1)
