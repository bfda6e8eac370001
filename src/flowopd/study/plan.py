"""A study as stages in the order in which they can be done, each with its identity."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import EvalConfig, Job
from flowopd.evaluation.run import check_protocol
from flowopd.study.config import Study
from flowopd.study.identity import Contents, Scorers, identity
from flowopd.study.kinds import EVALUATE, KINDS, Kind
from flowopd.study.names import BASE, evaluation_of, seed_names, unknown
from flowopd.study.references import Draft, adapter_of, drafts

STAGES = "stages"


@dataclass(frozen=True)
class Stage:
    """One thing to do, which is done when its folder says so with this identity."""

    name: str
    kind: str
    config: Any
    needs: tuple[str, ...]
    identity: str
    folder: Path
    course: str | None = None
    """The identity without the number of updates, where more of them go on from fewer."""


@dataclass(frozen=True)
class Plan:
    """The stages of a study, every one after those that it needs."""

    study: Study
    folder: Path
    stages: Mapping[str, Stage]
    kinds: Mapping[str, Kind]
    job: Job | None
    """Of the evaluation; None when nothing is evaluated."""

    def kind(self, stage: Stage) -> Kind:
        return self.kinds[stage.kind]

    @cached_property
    def rows(self) -> dict[str, list[str]]:
        """The stages that each row of the evaluation stands for, one for each seed."""
        evaluation = self.study.config.evaluation
        return {row: seeds_of(self.study, row) for row in (evaluation.rows if evaluation else ())}

    def upstream(self, names: Collection[str]) -> list[str]:
        """These stages and all that they stand on, in the order of the plan."""
        return closure(names, {name: stage.needs for name, stage in self.stages.items()})


def seeds_of(study: Study, row: str) -> list[str]:
    return [row] if row == BASE else seed_names(row, study.config.stages[row].seeds or [0])


def build_plan(
    study: Study,
    folder: Path,
    *,
    kinds: Mapping[str, Kind] = KINDS,
    wanted: Collection[str] | None = None,
) -> Plan:
    """Every stage (or those wanted, with what they stand on), each checked on its own.

    ``folder`` is where the study is run. Nothing is written, and no weights are loaded.
    """
    folder = folder.absolute()
    stages = folder / STAGES
    found = drafts(study, stages)
    found |= {draft.name: draft for draft in _evaluations(study)}
    order = ordered(found)
    if wanted is not None:
        order = closure(wanted, {name: found[name].needs for name in order})
    protocol = job = None
    if any(found[name].kind == EVALUATE for name in order):
        protocol, job = _read_protocol(study, stages)
    built: dict[str, Stage] = {}
    contents, scorers = Contents(), Scorers()
    for name in order:
        draft, kind = found[name], kinds[found[name].kind]
        data = draft.data
        if draft.kind == EVALUATE:
            data = _evaluation_data(study, draft, protocol, job, stages)
        made = {adapter_of(stages, need): built[need].identity for need in draft.needs}
        config = kind.read(data, study, draft.origin)
        try:
            covers = kind.covers(config, scorers)
            known = identity(draft.kind, covers, made, contents)
            endless = kind.endless(config, covers)
            course = None if endless is None else identity(draft.kind, endless, made, contents)
        except FlowOPDError as error:
            raise FlowOPDError(f"The stage {name!r} cannot be run: {error}") from None
        built[name] = Stage(name, draft.kind, config, draft.needs, known, stages / name, course)
    return Plan(study, folder, built, kinds, job)


def ordered(found: Mapping[str, Draft]) -> list[str]:
    """The stages in the order of the file, but each after what it needs; a cycle is refused."""
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise FlowOPDError(
                f"The stages stand on each other in a circle: {cycle}. One of them has to do "
                "without another."
            )
        if name not in done:
            for need in found[name].needs:
                visit(need, (*path, name))
            done[name] = None

    for name in found:
        visit(name, ())
    return list(done)


def closure(names: Collection[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The names and all that they need, in the order of ``needs`` (which has needs first)."""
    wanted: set[str] = set()
    for name in reversed(list(needs)):
        if name in names or name in wanted:
            wanted.update((name, *needs[name]))
    return [name for name in needs if name in wanted]


def _evaluations(study: Study) -> Iterator[Draft]:
    evaluation = study.config.evaluation
    for row in evaluation.rows if evaluation else ():
        for name in seeds_of(study, row):
            needs = () if name == BASE else (name,)
            yield Draft(evaluation_of(name), row, EVALUATE, {"row": name}, needs)


def _read_protocol(study: Study, stages: Path) -> tuple[EvalConfig, Job]:
    """The study's evaluation, checked for all rows at once."""
    evaluation = study.config.evaluation
    assert evaluation is not None
    options = {"model": study.config.model, "adapters": {}, "out": stages}
    unchecked = {} if study.config.check_rewards else {"check_rewards": False}
    protocol = load_config(EvalConfig, evaluation.protocol, options=options | unchecked)
    job = check_protocol(protocol)
    metrics = [metric.name for scorer in job.scorers for metric in scorer.metrics]
    for name in evaluation.average:
        if name not in metrics:
            raise FlowOPDError(
                f"'evaluation.average' names the metric {name!r}, which no scorer of "
                f"{evaluation.protocol} gives." + unknown(name, metrics, "metrics are")
            )
    if evaluation.panel is not None:
        prompts = evaluation.panel.prompts
        protocol.model.check_pictures(prompts, protocol.height, protocol.width)
    return protocol, job


def _evaluation_data(
    study: Study, draft: Draft, protocol: EvalConfig | None, job: Job | None, stages: Path
) -> dict[str, Any]:
    assert protocol is not None
    assert study.config.evaluation is not None
    row = draft.data["row"]
    adapter = None if row == BASE else adapter_of(stages, row)
    own = protocol.model_copy(
        update={"out": stages / draft.name, "adapters": {row: adapter} if adapter else {}}
    )
    panel = study.config.evaluation.panel
    return {"protocol": own, "job": job, "adapter": adapter, "panel": panel}
