"""Pictures drawn with tensors that have no numbers, for what evaluations need."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from flowopd.adapters import Adapters, Switch
from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.attention import fused_attention
from flowopd.planning.held import weights
from flowopd.planning.imagined import Followed
from flowopd.planning.memory import LiveMemory
from flowopd.planning.needs import Item, Phase
from flowopd.planning.outline import Outline, pixels
from flowopd.planning.replay import Replay
from flowopd.policy.generate import generate
from flowopd.policy.network import Expert

NAME = "evaluated"


@dataclass(frozen=True)
class Sampled:
    """Bytes on one device."""

    weights: Sequence[Item]
    sides: tuple[int, int]
    """Of a picture."""
    expert: int
    """The adapter, or the network in place of the model's own."""
    peaks: dict[Phase, int]
    """Above that and the weights."""


def rehearse_sampling(
    model: Outline, config: EvalConfig, expert: Expert | None, images: int
) -> Sampled:
    """One batch, of at most so many images."""
    memory, batch_size = LiveMemory(), min(config.batch_size, images)
    items, sides = weights(model, cached=config.text_cache is not None), pixels(model, config)
    prompts = [str(number) for number in range(batch_size)]
    files = {} if expert is None else {NAME: expert}
    with memory, fused_attention(getattr(config.model, "attention_backend", None)):
        Followed(model, memory)
        with Switch(model, Adapters(config.model, files)).using(NAME if files else None):
            held = memory.live
            Replay(model.transformer, memory, lambda: None)
            with memory.during(Phase.SAMPLE):
                seeds = list(range(batch_size))
                deque(generate(model, prompts, seeds, config, batch_size=batch_size), maxlen=0)
    return Sampled(
        items,
        sides,
        held,
        {Phase(name): peak - held for name, peak in memory.peaks.items() if name},
    )
