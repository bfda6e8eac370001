"""What of a study is to be done, and whether it could be: every check without weights."""

from collections.abc import Mapping, Sequence

from flowopd.errors import FlowOPDError
from flowopd.reporting.config import check_report
from flowopd.study.identity import Scorers
from flowopd.study.kinds import TRAIN
from flowopd.study.names import evaluation_of, seed_names, unknown
from flowopd.study.plan import Plan, Stage
from flowopd.study.records import Found, State, verify
from flowopd.study.references import adapter_of


def select(plan: Plan, only: Sequence[str], found: Mapping[str, Found]) -> list[Stage]:
    """What is to be done, in order: the stages that are not done, all or what ``only`` needs.

    A name of the study's file stands for all of its seeds.
    """
    names = plan.upstream(_named(plan, only)) if only else list(plan.stages)
    return [plan.stages[name] for name in names if found[name].state is not State.DONE]


def _named(plan: Plan, only: Sequence[str]) -> set[str]:
    origins = plan.study.config.stages
    chosen: set[str] = set()
    for name in only:
        group = [name]
        for origin, stage in origins.items():
            seeds = seed_names(origin, stage.seeds or [0])
            if name == origin:
                group = seeds
            elif name == evaluation_of(origin):
                group = [evaluation_of(seed) for seed in seeds]
        missing = [one for one in group if one not in plan.stages]
        if missing:
            raise FlowOPDError(
                f"--only names {name!r}, which is no stage of this study."
                + unknown(name, list(plan.stages), "stages are")
            )
        chosen.update(group)
    return chosen


def check(plan: Plan, todo: Sequence[Stage], found: Mapping[str, Found]) -> None:
    """Refuse, before any weight is loaded, what could only fail later."""
    pending = {
        adapter_of(stage.folder.parent, name)
        for name, stage in plan.stages.items()
        if found[name].state is not State.DONE
    }
    for need in dict.fromkeys(need for stage in todo for need in stage.needs):
        if found[need].state is State.DONE:
            verify(plan.stages[need])
    for stage in todo:
        try:
            plan.kind(stage).check(stage.config, pending)
        except FlowOPDError as error:
            raise FlowOPDError(f"The stage {stage.name!r} cannot be run: {error}") from None
    _check_report(plan)


def _check_report(plan: Plan) -> None:
    """The report's figures name rows, training stages and metrics that there will be."""
    study = plan.study.config
    if plan.job is None:
        return
    scorers = Scorers()
    trained = [stage for stage in plan.stages.values() if stage.kind == TRAIN]
    probes = [getattr(stage.config, "probe", None) for stage in trained]
    probed = [spec for probe in probes if probe for spec in probe.scorers]
    metrics = [metric.name for scorer in plan.job.scorers for metric in scorer.metrics]
    metrics += [f"{name}/{tag}" for name in metrics for tag in _tags(plan)]
    metrics += [metric.name for spec in probed for metric in scorers.metrics(spec)]
    names = [*study.stages, *(stage.name for stage in trained)]
    trained_names = [
        n for n in dict.fromkeys(names) if n not in study.stages or study.stages[n].train
    ]
    check_report(study.report, list(plan.rows), [*dict.fromkeys(metrics), "average"], trained_names)


def _tags(plan: Plan) -> list[str]:
    records = plan.job.records if plan.job else []
    return list(dict.fromkeys(record.tag for record in records if record.tag))
