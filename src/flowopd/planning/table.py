"""A plan as tables and sentences."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flowopd.planning.needs import TRAIN, Item, StageNeeds
from flowopd.planning.study_plan import StudyNeeds

NOTHING = "–"
GIB = 2**30


def study_tables(needs: StudyNeeds) -> RenderableType:
    """Each stage in detail, then all of them in one table."""
    parts = [part for stage in needs.stages for part in _stage(stage, needs.memory)]
    return Group(*parts, _overview(needs), *(Text(f"assumed: {one}") for one in needs.assumed))


def verdict(stage: StageNeeds, memory: int | None) -> str:
    """Whether a stage fits, and by how much it does not."""
    if stage.worst is None or memory is None:
        return ""
    over = stage.worst.total - memory
    return "fits" if over <= 0 else f"does not fit, by {_gib(over)} GiB"


def _overview(needs: StudyNeeds) -> Table:
    devices = f"{needs.devices} device{'s' if needs.devices > 1 else ''}"
    each = "" if needs.memory is None else f" with {_gib(needs.memory)} GiB"
    table = Table(title=f"{needs.name} on {devices}{each}", title_justify="left")
    table.add_column("stages", max_width=48)
    table.add_column("kind")
    for column in ("images", "forwards", "backwards", "disk", "peak"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for stage in needs.stages:
        table.add_row(
            ", ".join(stage.names),
            stage.kind,
            _number(stage.work.images),
            _number(stage.work.forwards + stage.work.probes),
            _number(stage.work.backwards),
            _size(sum(item.size for item in stage.disk)),
            NOTHING if stage.worst is None else f"{_gib(stage.worst.total)} GiB",
            verdict(stage, needs.memory),
        )
    return table


def _stage(stage: StageNeeds, memory: int | None) -> Iterator[RenderableType]:
    yield Text(f"{', '.join(stage.names)} ({stage.kind})", style="bold")
    yield from map(Text, _work(stage))
    if stage.phases:
        yield _held(stage)
        yield _phases(stage)
    yield from map(Text, _listed("host memory", stage.host))
    yield from map(Text, _listed("disk", stage.disk))
    yield from map(Text, _fit(stage, memory))
    yield from map(Text, stage.notes)
    yield Text("")


def _work(stage: StageNeeds) -> Iterator[str]:
    work = stage.work
    if stage.kind == TRAIN:
        yield f"{work.updates:,} updates of {work.images_per_update:,} images; {work.division}"
        yield (
            f"an update: {work.forwards_per_update:,} forwards and {work.backwards_per_update:,} "
            f"backwards of one sample; in all {work.forwards:,} and {work.backwards:,}"
            + (f", and {work.probes:,} forwards of probes" if work.probes else "")
        )
    elif work.images:
        yield f"{work.images:,} images, {work.forwards:,} forwards of one sample"


def _held(stage: StageNeeds) -> Table:
    table = Table()
    table.add_column("held by each device", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("")
    for item in stage.held:
        table.add_row(item.name, _gib(item.size), item.note)
    return table


def _phases(stage: StageNeeds) -> Table:
    table = Table()
    table.add_column("most at a time, in GiB", no_wrap=True)
    for column in ("held", "working", "allowance", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    for need in stage.phases:
        sizes = (need.held, need.working, need.allowance, need.total)
        table.add_row(need.phase, *map(_gib, sizes), style="bold" if need == stage.worst else "")
    return table


def _listed(place: str, items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        yield f"{place}: {_size(item.size)}, {item.name}{f' ({item.note})' if item.note else ''}"


def _fit(stage: StageNeeds, memory: int | None) -> Iterator[str]:
    if stage.worst is None or memory is None:
        return
    yield f"{_gib(stage.worst.total)} of {_gib(memory)} GiB: {verdict(stage, memory)}"
    for change in stage.changes:
        fits = "fits" if change.fits else "does not fit"
        yield f"  {change.settings}: {_gib(change.peak)} GiB, {fits}"


def _gib(size: int) -> str:
    """With as many digits as say something of small models, too."""
    value = size / GIB
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def _size(size: int) -> str:
    if not size:
        return NOTHING
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _number(value: int) -> str:
    return f"{value:,}" if value else NOTHING
