"""What the policy gradient (14) is the gradient of, on a chain where everything is known.

One dimension, velocities `v_S = theta x` and `v_T = phi x`: every state is Gaussian, its second
moment follows from the one before, and so do the expected KL and its derivatives by theta.
"""

from dataclasses import dataclass

import pytest
import torch

from flowopd.algorithms.distillation import divergence_advantages, weighted_divergence
from flowopd.algorithms.surrogate import clipped_surrogate
from flowopd.flow import kl_weight, mean_log_prob, sigma_schedule, transition

THETA, PHI, SAMPLES, STEPS, NOISE = 0.4, -0.6, 200_000, 5, 0.7
SIGMAS = sigma_schedule(STEPS).double()
TRAINED = STEPS - 1
"""All but the last."""


@dataclass
class Chain:
    """Rollouts of the student; theta is a leaf of its own for every sample."""

    theta: torch.Tensor
    kls: torch.Tensor
    """[K, B], with their gradient by theta through the velocity only: states are detached."""
    log_probs: torch.Tensor


def step(k, x, v):
    t, t_next = float(SIGMAS[k]), float(SIGMAS[k + 1])
    return transition("flow_sde", x, v, t, t_next, noise_level=NOISE, t_clamp=float(SIGMAS[1]))


@pytest.fixture(scope="module")
def chain() -> Chain:
    generator = torch.Generator().manual_seed(0)
    theta = torch.full((SAMPLES, 1), THETA, dtype=torch.float64, requires_grad=True)
    x = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    kls, log_probs = [], []
    for k in range(TRAINED):
        v = theta * x
        move = step(k, x, v)
        weight = kl_weight(move, "kl").expand(SAMPLES)
        kls.append(weighted_divergence(v, PHI * x, weight))
        noise = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
        x = move.sample(noise).detach()
        log_probs.append(mean_log_prob(move, x))
    return Chain(theta, torch.stack(kls), torch.stack(log_probs))


def expected_kl(theta: float, path: float) -> float:
    """E of the sum of KLs with `theta` in the velocity, on states of a student with `path`."""
    one, moment, total = torch.ones(1, 1, dtype=torch.float64), 1.0, 0.0
    for k in range(TRAINED):
        move = step(k, one, path * one)
        total += float(kl_weight(move, "kl")) * (theta - PHI) ** 2 * moment
        moment = float(move.mean) ** 2 * moment + float(move.std) ** 2
    return total


def derivative(function, at: float, h: float = 1e-5) -> float:
    return (function(at + h) - function(at - h)) / (2 * h)


DIRECT = derivative(lambda theta: expected_kl(theta, THETA), THETA)
THROUGH_STATES = derivative(lambda path: expected_kl(THETA, path), THETA)
WHOLE = derivative(lambda theta: expected_kl(theta, theta), THETA)


def score_gradients(chain: Chain, **keys) -> torch.Tensor:
    """The gradient of (14) by theta, [K, B]: for each step and each sample."""
    pools = torch.zeros(SAMPLES, dtype=torch.int64)
    settings = {"horizon": "step", "normalise": False, "clip": 1e12} | keys
    advantages = divergence_advantages(chain.kls, pools, **settings)
    found = []
    for log_prob, advantage in zip(chain.log_probs, advantages, strict=True):
        loss = clipped_surrogate(log_prob, log_prob.detach(), advantage, clip=1e-4).loss
        found.append(torch.autograd.grad(loss.sum(), chain.theta, retain_graph=True)[0][:, 0])
    return torch.stack(found)


def z(gradients: torch.Tensor, expected: float = 0.0) -> float:
    """By how many standard errors the mean [B] is off."""
    error = float(gradients.std()) / len(gradients) ** 0.5
    return (float(gradients.mean()) - expected) / error


def test_the_chain_is_what_its_moments_say(chain):
    assert abs(z(chain.kls.sum(0).detach(), expected_kl(THETA, THETA))) < 4


@pytest.mark.parametrize(
    "keys",
    [{}, {"clip": 0.5}, {"normalise": True, "clip": 5.0}],
    ids=["plain", "clip", "normalise"],
)
def test_with_horizon_step_every_steps_gradient_is_zero_in_expectation(chain, keys):
    """The KL of step k follows from `x_k`, not from the noise of step k: there is no signal."""
    gradients = score_gradients(chain, **keys)
    assert all(float(own.std()) > 0.01 for own in gradients)
    assert all(abs(z(own)) < 4 for own in gradients)
    assert abs(z(gradients.sum(0))) < 4


def test_with_horizon_trajectory_it_is_the_gradient_through_the_states(chain):
    gradients = score_gradients(chain, horizon="trajectory").sum(0)
    assert abs(z(gradients, THROUGH_STATES)) < 4
    assert abs(z(gradients)) > 15


def test_normalised_it_is_still_not_zero(chain):
    gradients = score_gradients(chain, horizon="trajectory", normalise=True, clip=5.0).sum(0)
    assert abs(z(gradients)) > 15
    assert float(gradients.mean()) * THROUGH_STATES > 0


def test_the_last_trained_steps_gradient_is_zero_with_either_horizon(chain):
    """No KL comes after it."""
    assert abs(z(score_gradients(chain, horizon="trajectory")[-1])) < 4


def test_the_pathwise_loss_is_the_gradient_at_fixed_states(chain):
    """What the released code's gradient consists of: its KL is not detached."""
    (gradients,) = torch.autograd.grad(chain.kls.sum(), chain.theta, retain_graph=True)
    assert abs(z(gradients[:, 0], DIRECT)) < 4
    assert abs(z(gradients[:, 0])) > 100


def test_both_together_are_the_gradient_of_the_trajectorys_kl(chain):
    """(13) and (14) with `horizon: trajectory` complete each other: `loss: both`."""
    assert pytest.approx(DIRECT + THROUGH_STATES, rel=1e-6) == WHOLE
    (direct,) = torch.autograd.grad(chain.kls.sum(), chain.theta, retain_graph=True)
    gradients = direct[:, 0] + score_gradients(chain, horizon="trajectory").sum(0)
    assert abs(z(gradients, WHOLE)) < 4


def test_credit_averaged_over_the_batch_would_have_no_signal(chain):
    """What [B, 1] times [B] makes of it: every sample's score gets the batch's mean credit."""
    credit = divergence_advantages(
        chain.kls,
        torch.zeros(SAMPLES, dtype=torch.int64),
        horizon="trajectory",
        normalise=False,
        clip=1e12,
    )
    own = torch.stack(
        [
            torch.autograd.grad(log_prob.sum(), chain.theta, retain_graph=True)[0][:, 0]
            for log_prob in chain.log_probs
        ]
    )
    averaged = -(credit.mean(1, keepdim=True) * own).sum(0)
    assert abs(z(averaged)) < 4
    assert abs(THROUGH_STATES) > 5 * float(averaged.mean().abs())
