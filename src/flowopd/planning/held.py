"""What a device holds whatever is computed."""

from collections.abc import Mapping, Sequence

from torch import nn

from flowopd.planning.needs import Item, PhaseNeed, When
from flowopd.planning.outline import Outline, bytes_of, parameters_of
from flowopd.planning.phases import Phase
from flowopd.planning.rehearsed import Rehearsed
from flowopd.training.config import TrainConfig

NETWORKS = "networks of teachers and anchor"


def of_training(config: TrainConfig, found: Rehearsed) -> list[Item]:
    """Beside the weights."""
    after: When = "always" if config.text_cache is None else "afterwards"
    merged = "with merged layers" if config.teachers.merged else ""
    items = [
        Item("student", found.student, f"{_millions(found.parameters)}, float32"),
        Item("adapters of teachers and anchor", found.experts, merged),
        Item(NETWORKS, found.networks - found.away),
        Item("gradients", found.gradients, when=after),
        Item("optimizer", found.optimizer, "AdamW", when=after),
        Item("averages", found.averages, "EMA", when=after),
        Item("prompt embeddings", found.embeddings, "of a batch", when=after),
    ]
    return [item for item in items if item.size > 0]


def on_host(found: Rehearsed) -> list[Item]:
    """What waits for its turn outside the devices."""
    note = "of teachers and anchor, in every process"
    return [Item("whole networks", found.hosted, note)] if found.hosted else []


def phases(items: Sequence[Item], peaks: Mapping[Phase, int]) -> list[PhaseNeed]:
    """In the order of a run, with what is there in each."""
    return [
        PhaseNeed(phase, sum(item.size for item in items if _there(item, phase)), peaks[phase])
        for phase in Phase
        if phase in peaks
    ]


def _there(item: Item, phase: Phase) -> bool:
    absent = "afterwards" if phase is Phase.ENCODE else "encoding"
    return item.when != absent


def weights(model: Outline, *, cached: bool) -> list[Item]:
    """Of the base and what is around it, before adapters are in it."""
    encoders = list(model.encoders.values())
    stay = "freed once every prompt is cached" if cached else "they stay: there is no text_cache"
    return [
        Item("transformer", bytes_of(model.transformer), _described(model.transformer)),
        Item("autoencoder", bytes_of(model.vae), _described(model.vae)),
        Item(
            "text encoders",
            bytes_of(*encoders),
            f"{len(encoders)}, {_described(*encoders)}; {stay}",
            "encoding" if cached else "always",
        ),
    ]


def _described(*modules: nn.Module) -> str:
    kinds = {one.dtype for module in modules for one in module.parameters()}
    names = sorted(str(kind).removeprefix("torch.") for kind in kinds)
    return f"{_millions(parameters_of(*modules))}, {' and '.join(names)}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
