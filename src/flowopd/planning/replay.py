"""A network that runs once for every kind of call, and afterwards only takes up what it took then.

A run calls its network hundreds of times with the same shapes. What a call needs of memory is
measured when its kind first comes; later calls take up as much and compute nothing.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowopd.planning.memory import LiveMemory

Identify = Callable[[], Hashable]
"""What tells the network's present state from others: which adapter is switched on."""


@dataclass
class Cost:
    """Of one kind of call, in bytes over what was alive when it began."""

    samples: int
    forward: int
    """The most that is alive on the way."""
    kept: int = 0
    """What stays for the backward pass, beside the result."""
    backward: int = 0
    """The most that the backward pass adds to what is alive when it comes to the network."""

    def of(self, part: int, samples: int) -> int:
        """A part of the cost for another number of samples."""
        return round(part * samples / self.samples)


class Replay:
    """Takes the place of a network's forward. `trained` are the parameters that get gradients."""

    def __init__(
        self,
        network: nn.Module,
        memory: LiveMemory,
        identify: Identify,
        trained: Sequence[Tensor] = (),
        on_graded: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_graded` is called when a call with a gradient begins."""
        self._run, self._memory = network.forward, memory
        self._identify, self._trained, self._on_graded = identify, trained, on_graded
        self._costs: dict[Hashable, tuple[Cost, Tensor]] = {}
        network.forward = self

    def __call__(self, *, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor]:
        given = [hidden_states, *(one for one in inputs.values() if isinstance(one, Tensor))]
        shapes = tuple(tuple(one.shape[1:]) for one in given)
        samples, graded = len(hidden_states), torch.is_grad_enabled()
        if graded:
            self._on_graded()
        kind = (self._identify(), graded, shapes)
        if kind not in self._costs or self._costs[kind][0].samples < samples:
            return self._measured(kind, hidden_states, inputs)
        cost, like = self._costs[kind]
        if graded:
            result: Tensor = _Taken.apply(self._memory, cost, like, samples, *self._trained)
            return (result,)
        self._memory.reach(cost.of(cost.forward, samples))
        return (like.new_empty((samples, *like.shape[1:])),)

    def _measured(self, kind: Hashable, hidden_states: Tensor, inputs: Any) -> tuple[Tensor]:
        with self._memory.watch() as watch:
            result = self._run(hidden_states=hidden_states, **inputs)[0]
        kept = self._memory.live - watch.start - result.untyped_storage().nbytes()
        cost = Cost(len(hidden_states), watch.above, max(kept, 0))
        self._costs[kind] = cost, torch.empty_like(result[:0], requires_grad=False)
        if result.requires_grad:
            result.register_hook(lambda _: self._watch_backward(cost))
        return (result,)

    def _watch_backward(self, cost: Cost) -> None:
        """From the gradient's arrival at the network's result to the end of the backward pass."""
        watching = self._memory.watch()
        watch = watching.__enter__()

        def ended() -> None:
            watching.__exit__(None, None, None)
            cost.backward = watch.above

        torch.autograd.Variable._execution_engine.queue_callback(ended)


class _Taken(torch.autograd.Function):
    """A call whose cost is known: it takes up the memory, and makes gradients where none are."""

    @staticmethod
    def forward(
        ctx: Any, memory: LiveMemory, cost: Cost, like: Tensor, samples: int, *trained: Tensor
    ) -> Tensor:
        memory.reach(cost.of(cost.forward, samples))
        size = cost.of(cost.kept, samples)
        ctx.save_for_backward(torch.empty(size, dtype=torch.uint8, device=like.device))
        ctx.memory, ctx.backward_bytes = memory, cost.of(cost.backward, samples)
        ctx.trained = trained
        return like.new_empty((samples, *like.shape[1:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.memory.reach(ctx.backward_bytes)
        new = [None if one.grad is not None else torch.zeros_like(one) for one in ctx.trained]
        return None, None, None, None, *new
