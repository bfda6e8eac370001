"""Where the time of a fused update goes, and how far it is from forwards x forward time.

On a GPU every part is waited for, which an update otherwise does not do: the parts add up to a
little more than the update takes.
"""

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowopd.flow import VelocityFn, guided
from flowopd.policy.protocol import PromptEmbeds
from flowopd.tasks.batches import Sample
from flowopd.training.velocities import Velocities
from opd_measure import now, seconds
from opd_sides import Ours

EACH = 3
"""Single forwards that are timed together."""
REST = "the rest"
GRADIENT, BARE = "student forward, with a gradient", "student forward, without"
TEACHER, ANCHOR, BACKWARD = "teacher forward", "anchor forward", "backward"
SWITCH, STEP = "switching adapters", "optimizer"


class Stopwatch:
    """Time by name; what is timed inside another is not counted there."""

    def __init__(self, device: torch.device) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._device = device
        self._open = [REST]
        self._since = now(device)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        self.calls[name] += 1
        yield
        self._charge()
        self._open.pop()

    def stop(self) -> None:
        self._charge()

    def _charge(self) -> None:
        moment = now(self._device)
        self.spent[self._open[-1]] += moment - self._since
        self._since = moment


class TimedVelocities(Velocities):
    """The velocities of a run, each timed under its role."""

    def __init__(self, timed: Velocities, watch: Stopwatch) -> None:
        super().__init__(timed.model, timed.roles, timed._encode)
        self._watch = watch

    def student(self, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        velocity = super().student(cond, guidance)

        def call(x: Tensor, t: Tensor) -> Tensor:
            with self._watch(GRADIENT if torch.is_grad_enabled() else BARE):
                return velocity(x, t)

        return call

    def frozen(self, name: str | None, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        velocity = super().frozen(name, cond, guidance)

        def call(x: Tensor, t: Tensor) -> Tensor:
            with self._watch(ANCHOR if name == self.roles.anchor else TEACHER):
                return velocity(x, t)

        return call


@dataclass(frozen=True)
class Forward:
    """Seconds of one guided forward of a pass's samples."""

    base: float
    """Without an adapter and a gradient."""
    adapted: float
    base_and_back: float
    """With a gradient to the latents, and the backward."""
    adapted_and_back: float


@dataclass(frozen=True)
class Profile:
    """Of one update, in seconds."""

    update: float
    """Undisturbed."""
    parts: dict[str, float]
    forwards: int
    """Passes through the network, and how many of them have a backward."""
    backwards: int
    forward: Forward

    @property
    def bound(self) -> float:
        """The forwards and backwards alone, at what they take without adapters."""
        backward = self.forward.base_and_back - self.forward.base
        return self.forwards * self.forward.base + self.backwards * backward

    @property
    def reached(self) -> float:
        """The share of the bound: 1 would be an update of nothing but the bare network."""
        return self.bound / self.update


def profile(ours: Ours, samples: list[Sample], repeats: int) -> Profile:
    """Parts, forwards and undisturbed updates in turns, and the median of each."""
    device = ours.context.model.device
    updates, watches, forwards = [], [], []
    measure = single_forwards(ours, samples, device)
    for _ in range(repeats):
        updates.append(seconds(lambda: ours.update(samples), device))
        watches.append(_watched(ours, samples, device))
        forwards.append(measure())
    names = dict.fromkeys(name for watch in watches for name in watch.spent)
    parts = {name: statistics.median(watch.spent[name] for watch in watches) for name in names}
    calls = watches[0].calls
    fields = zip(*(vars(forward).values() for forward in forwards), strict=True)
    return Profile(
        update=statistics.median(updates),
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        forwards=sum(calls[name] for name in (GRADIENT, BARE, TEACHER, ANCHOR)),
        backwards=calls[BACKWARD],
        forward=Forward(*(statistics.median(values) for values in fields)),
    )


def single_forwards(
    ours: Ours, samples: list[Sample], device: torch.device
) -> Callable[[], Forward]:
    """Forwards of the update's first pass, with the student's adapter and without any."""
    context = ours.context
    part = ours.method.batch(samples).parts[0]
    x, _ = ours.method.start(part)
    t = x.new_full((len(x),), 0.5)
    guidance = context.config.rollout.guidance
    uncond = context.model.encode_prompts([""] * len(part))
    plain = guided(context.model.velocity, part.cond, uncond, guidance)
    student = context.velocities.student(part.cond, guidance)
    towards = x.clone().requires_grad_()

    def bare(x: Tensor) -> Tensor:
        with context.bank.using(None):
            return plain(x, t)

    def forwards_only(velocity: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            return seconds(lambda: [velocity(x) for _ in range(EACH)], device) / EACH

    def and_back(velocity: Callable[[Tensor], Tensor], x: Tensor) -> float:
        taken = seconds(
            lambda: [velocity(x).square().mean().backward() for _ in range(EACH)], device
        )
        ours.trainer.optimizer.zero_grad(set_to_none=True)
        towards.grad = None
        return taken / EACH

    def measure() -> Forward:
        return Forward(
            base=forwards_only(bare),
            adapted=forwards_only(lambda x: student(x, t)),
            base_and_back=and_back(bare, towards),
            adapted_and_back=and_back(lambda x: student(x, t), x),
        )

    measure()
    return measure


def _watched(ours: Ours, samples: list[Sample], device: torch.device) -> Stopwatch:
    """One update with every part timed."""
    watch = Stopwatch(device)
    context, bank, optimizer = ours.context, ours.context.bank, ours.trainer.optimizer
    velocities = context.velocities
    context.velocities = TimedVelocities(velocities, watch)
    try:
        with (
            _timed(torch.Tensor, "backward", watch, BACKWARD),
            _timed(bank, "_activate", watch, SWITCH),
            _timed(optimizer, "step", watch, STEP),
        ):
            ours.update(samples)
    finally:
        context.velocities = velocities
    watch.stop()
    return watch


@contextlib.contextmanager
def _timed(owner: Any, function: str, watch: Stopwatch, name: str) -> Iterator[None]:
    """Inside, a function of the owner is timed."""
    own = function in vars(owner)
    before = getattr(owner, function)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch(name):
            return before(*args, **kwargs)

    setattr(owner, function, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, function, before)
        else:
            delattr(owner, function)
