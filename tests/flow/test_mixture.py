"""What the samplers sample, given the exact velocity of a Gaussian mixture.

`benchmarks/gaussian_mixture.py` prints the same numbers with more samples.
"""

import importlib
from dataclasses import replace

import pytest
import torch

from flow.mixture import MIXTURE, Errors, sample_with
from flowopd.flow import Sampler

COUNT = 20_000
STEPS = 200
FLOW_SDE = Sampler("flow_sde", noise_level=0.7)
rollout_module = importlib.import_module("flowopd.flow.rollout")


def reproduces_mixture(errors: Errors) -> bool:
    """Within the sampling error of 20,000 draws and the discretisation error of 200 steps."""
    return errors.weight < 0.015 and errors.mean < 0.03 and errors.covariance < 0.08


def test_exact_samples_pass_the_check():
    assert reproduces_mixture(MIXTURE.errors(MIXTURE.sample(COUNT)))


def test_the_velocity_is_the_conditional_expectation():
    generator = torch.Generator().manual_seed(0)
    x0, t = MIXTURE.sample(400_000), 0.5
    x1 = torch.randn(x0.shape, generator=generator)
    x_t = (1 - t) * x0 + t * x1
    point = torch.tensor([[0.6, 0.2]])
    near = (x_t - point).norm(dim=1) < 0.1
    found = (x1 - x0)[near]
    error = found.std(0) / near.sum() ** 0.5
    exact = MIXTURE.velocity(point, torch.tensor([t]))[0]
    assert near.sum() > 2000
    assert ((found.mean(0) - exact).abs() < 4 * error + 0.02).all()


@pytest.mark.parametrize("sampler", [Sampler("ode"), FLOW_SDE], ids=["ode", "flow_sde"])
def test_many_steps_reproduce_means_covariances_and_weights(sampler):
    errors = MIXTURE.errors(sample_with(sampler, STEPS, COUNT))
    assert reproduces_mixture(errors), errors


def no_score_correction(right, x, v, t, t_next):
    return x + v * (t_next - t)[:, None, None]


def wrong_sign_of_correction(right, x, v, t, t_next):
    return 2 * no_score_correction(right, x, v, t, t_next) - right.mean


def wrong_sign_of_velocity_term(right, x, v, t, t_next):
    return right.mean - 2 * (right.gain - right.dt)[:, None, None] * v


@pytest.mark.parametrize(
    "wrong_mean", [no_score_correction, wrong_sign_of_correction, wrong_sign_of_velocity_term]
)
def test_a_wrong_drift_fails_the_same_check(wrong_mean, monkeypatch):
    correct = rollout_module.transition

    def wrong(kind, x, v, t, t_next, **options):
        right = correct(kind, x, v, t, t_next, **options)
        return replace(right, mean=wrong_mean(right, x, v, t, t_next))

    monkeypatch.setattr(rollout_module, "transition", wrong)
    errors = MIXTURE.errors(sample_with(FLOW_SDE, STEPS, COUNT))
    assert not reproduces_mixture(errors), errors


def test_cps_is_too_narrow_and_more_steps_do_not_mend_it():
    for steps in (10, 40, 200):
        errors = MIXTURE.errors(sample_with(Sampler("cps", noise_level=0.7), steps, COUNT))
        assert not reproduces_mixture(errors)
        assert 0.75 < errors.spread < 0.9
        assert errors.covariance > 0.25


@pytest.mark.parametrize("sampler", [Sampler("ode"), FLOW_SDE], ids=["ode", "flow_sde"])
def test_the_others_come_closer_with_more_steps(sampler):
    coarse, fine = (MIXTURE.errors(sample_with(sampler, steps, COUNT)) for steps in (10, 40))
    assert fine.mean < 0.5 * coarse.mean
    assert fine.covariance < 0.5 * coarse.covariance
