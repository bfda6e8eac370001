"""Calls of a network that are measured once: later ones take up what the first one did."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from flowopd.planning.memory import LiveMemory
from flowopd.planning.replay import Replay

META = torch.device("meta")


class Network(nn.Module):
    """Three layers, of which the middle one is trained, called as a transformer is."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 512, 512, 64)
        self.layers = nn.ModuleList(nn.Linear(a, b, device=META) for a, b in pairwise(sizes))
        self.requires_grad_(False)
        self.layers[1].requires_grad_(True)
        self.calls = 0

    def forward(self, *, hidden_states: Tensor, shift: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.calls += 1
        x = hidden_states + shift
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x,)


class Called:
    """What calls of a network hold, one after the other, as `Replay` finds it."""

    def __init__(self) -> None:
        self.network, self.memory = Network(), LiveMemory()
        trained = list(self.network.layers[1].parameters())
        self.switched = ""
        self.graded = 0
        Replay(self.network, self.memory, lambda: self.switched, trained, self._begin)

    def _begin(self) -> None:
        self.graded += 1

    def step(self, samples: int) -> tuple[int, int, int]:
        """Forward and backward: both peaks and what is kept, above what was there before."""
        with self.memory as memory:
            x = torch.zeros(samples, 64, device=META)
            with memory.watch() as forward:
                y = self.network(hidden_states=x, shift=x, return_dict=False)[0]
            kept = memory.live - forward.start
            with memory.watch() as backward:
                y.square().sum().backward()
            return forward.above, kept, backward.above

    def draw(self, samples: int) -> int:
        with self.memory as memory, torch.no_grad():
            x = torch.zeros(samples, 64, device=META)
            with memory.watch() as watch:
                self.network(hidden_states=x, shift=x, return_dict=False)
            return watch.above


def test_steps_after_the_first_compute_nothing_and_take_what_it_took() -> None:
    called = Called()
    first, second, third = (called.step(32) for _ in range(3))
    assert called.network.calls == 1
    assert second == third
    gradients = 4 * (512 * 512 + 512)  # made by the first step, and there from then on
    for one, other in zip(first, second, strict=True):
        assert abs(one - other) <= gradients + 4096


def test_gradients_are_made_where_there_are_none() -> None:
    called = Called()
    weight = called.network.layers[1].weight
    called.step(4)
    weight.grad = None
    called.step(4)
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
    assert called.network.calls == 1


def test_a_smaller_call_takes_its_part_and_a_larger_one_is_measured() -> None:
    called = Called()
    whole = called.draw(64)
    assert abs(called.draw(16) - whole / 4) <= 1024
    assert called.network.calls == 1
    assert called.draw(128) > 1.9 * whole
    assert called.network.calls == 2


def test_what_is_switched_on_and_gradients_make_another_kind_of_call() -> None:
    called = Called()
    called.draw(8)
    called.switched = "teacher"
    called.draw(8)
    called.step(8)
    assert called.network.calls == 3
    called.draw(8)
    called.step(8)
    assert (called.network.calls, called.graded) == (3, 2)
