"""A sample's noise is its own: the batch it travels in does not change it."""

import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.flow import NoiseSource


@pytest.mark.parametrize("shape", [(3,), (4, 8, 8), (16, 32, 32)])
def test_noise_does_not_depend_on_the_batch_split(shape):
    whole = NoiseSource([5, 6, 7])
    parts = [NoiseSource([5]), NoiseSource([6, 7])]
    for _ in range(3):
        assert torch.equal(whole.draw(shape), torch.cat([part.draw(shape) for part in parts]))


def test_seeds_and_draws_differ():
    source = NoiseSource([1, 2])
    first, second = source.draw((100,)), source.draw((100,))
    assert len(torch.cat([first, second]).unique(dim=0)) == 4
    assert first.dtype == torch.float32


def test_noise_is_standard_normal():
    draws = NoiseSource(range(20)).draw((5000,))
    assert abs(draws.mean().item()) < 0.015
    assert abs(draws.std().item() - 1) < 0.01


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = NoiseSource([3]).draw((4,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(NoiseSource([3]).draw((4,)), first)


def test_state_resumes_the_streams():
    source = NoiseSource([1, 2])
    source.draw((5,))
    state = source.state()
    expected = [source.draw((5,)) for _ in range(2)]
    resumed = NoiseSource([8, 9])
    resumed.load_state(state)
    assert all(torch.equal(resumed.draw((5,)), draw) for draw in expected)
    resumed.load_state(state)
    assert torch.equal(resumed.draw((5,)), expected[0])


def test_a_state_of_another_batch_size_is_refused():
    with pytest.raises(FlowOPDError, match="a source of 1 samples needs"):
        NoiseSource([1]).load_state(NoiseSource([1, 2]).state())


def test_no_seeds_are_refused():
    with pytest.raises(FlowOPDError, match="no seeds"):
        NoiseSource([])
