"""What a device holds whatever is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from flowopd.planning.disk import POOL, RESULT
from flowopd.planning.needs import Item, Phase, PhaseNeed, Rehearsed, When
from flowopd.planning.outline import Outline, bytes_of, parameters_of
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


def on_host(config: TrainConfig, found: Rehearsed, written: Sequence[Item]) -> list[Item]:
    """What is kept outside the devices. `written` are files, of which some are kept, too."""
    items = [
        Item("whole networks", found.hosted, "of teachers and anchor, pinned, in every process"),
        *(replace(item, note="in every process") for item in written if item.name == POOL),
    ]
    if config.student.full:
        results = (replace(item, note="while it is saved") for item in written)
        items += [item for item in results if item.name == RESULT]
    return [item for item in items if item.size > 0]


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
