"""The grid is the one that the installed diffusers steps through, bit for bit."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flowopd.errors import FlowOPDError
from flowopd.flow import rollout, sigma_schedule


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.15, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 28, 40, 200])
def test_equals_diffusers_for_steps_and_shifts(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = sigma_schedule(steps, shift=shift)
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(sigmas[:-1] * 1000, scheduler.timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 10, 28])
def test_ode_rollout_equals_stepping_the_diffusers_scheduler(steps, shift):
    def velocity(x, t):
        return torch.sin(3 * x) * t[:, None, None, None] - 0.5 * x

    x1 = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    expected = x1
    for timestep in scheduler.timesteps:
        v = velocity(expected, (timestep / 1000).expand(2))
        expected = scheduler.step(v, timestep, expected).prev_sample
    *_, last = rollout(velocity, x1, sigma_schedule(steps, shift=shift))
    torch.testing.assert_close(last.x_next, expected, rtol=0, atol=1e-6)


def test_levels_fall_strictly_from_one_to_zero():
    sigmas = sigma_schedule(28, shift=3.0)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (29,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_known_values_of_sd3():
    sigmas = sigma_schedule(28, shift=3.0)
    assert sigmas[-2].item() == pytest.approx(8.928e-3, abs=1e-6)
    assert sigma_schedule(2, shift=1.0).tolist() == pytest.approx([1.0, 0.001, 0.0])


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_bad_steps_are_refused(steps):
    with pytest.raises(FlowOPDError, match="steps is"):
        sigma_schedule(steps)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_shift_is_refused(shift):
    with pytest.raises(FlowOPDError, match="shift is"):
        sigma_schedule(4, shift=shift)
