"""Equation (1), and how many forwards of the network it takes."""

from dataclasses import dataclass

import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.flow import combine_guidance, guided


@dataclass(frozen=True)
class Words:
    values: torch.Tensor

    def __len__(self):
        return len(self.values)

    def join(self, other):
        return Words(torch.cat([self.values, other.values]))


class Network:
    """Counts its forwards and remembers their batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, words):
        self.batches.append(len(x))
        assert len(x) == len(t) == len(words)
        return x * t[:, None] + words.values[:, None]


X, T = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 1.0])
COND, UNCOND = Words(torch.tensor([1.0, 2.0])), Words(torch.tensor([-1.0, 0.0]))


def test_scale_one_is_one_forward_of_the_samples_alone():
    network = Network()
    v = guided(network, COND, UNCOND, 1.0)(X, T)
    assert network.batches == [2]
    assert torch.equal(v, Network()(X, T, COND))


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.5])
def test_other_scales_are_one_batched_forward_and_the_formula(scale):
    network = Network()
    v = guided(network, COND, UNCOND, scale)(X, T)
    assert network.batches == [4]
    v_cond, v_uncond = Network()(X, T, COND), Network()(X, T, UNCOND)
    torch.testing.assert_close(v, v_uncond + scale * (v_cond - v_uncond))


def test_combine_by_hand_in_float32():
    found = combine_guidance(torch.tensor([3.0]).bfloat16(), torch.tensor([1.0]).bfloat16(), 4.5)
    assert found.dtype == torch.float32
    assert found.tolist() == [10.0]


def test_gradient_reaches_both_branches():
    v_cond, v_uncond = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    combine_guidance(v_cond, v_uncond, 4.5).sum().backward()
    assert v_cond.grad.tolist() == [4.5] * 3
    assert v_uncond.grad.tolist() == [-3.5] * 3


def test_guidance_without_an_unconditional_embedding_is_refused():
    assert guided(Network(), COND, None, 1.0)(X, T).shape == X.shape
    with pytest.raises(FlowOPDError, match="no unconditional embedding"):
        guided(Network(), COND, None, 4.5)


def test_unequal_numbers_of_embeddings_are_refused():
    with pytest.raises(FlowOPDError, match="1 unconditional embeddings for 2 prompts"):
        guided(Network(), COND, Words(torch.zeros(1)), 4.5)
