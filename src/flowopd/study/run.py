"""Running a study: what is not done is done, then the results and the report are written."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from flowopd.config import dump_yaml, read_yaml
from flowopd.errors import FlowOPDError
from flowopd.files import check_writable, make_writable, write_atomic
from flowopd.locks import LOCK, locked
from flowopd.study.config import Study
from flowopd.study.kinds import KINDS, Kind
from flowopd.study.plan import STAGES, Plan, Stage, build_plan
from flowopd.study.records import Found, look, read_json
from flowopd.study.results import RESULTS, write_results
from flowopd.study.runner import Failures, do, do_all
from flowopd.study.selection import check, select
from flowopd.study.workers import Command, Workers, worker_command
from flowopd.team import Alone
from flowopd.training.ranks import processes, start_team

STUDY = "study.yaml"
RUNS = Path("runs")


def folder_of(study: Study, out: Path | None) -> Path:
    """Where the study is run."""
    return (RUNS / study.config.name if out is None else out).absolute()


def states(plan: Plan) -> dict[str, Found]:
    return {name: look(stage) for name, stage in plan.stages.items()}


def checked(
    study: Study, folder: Path, *, only: Sequence[str] = (), kinds: Mapping[str, Kind] = KINDS
) -> tuple[Plan, dict[str, Found], list[Stage]]:
    """The plan, what is there of it, and what is to be done: all checks, and nothing written."""
    plan = build_plan(study, folder, kinds=kinds)
    _refuse_other_contents(study, plan.folder)
    found = states(plan)
    todo = select(plan, only, found)
    check(plan, todo, found)
    return plan, found, todo


def run_study(
    study: Study,
    folder: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    kinds: Mapping[str, Kind] = KINDS,
    command: Command | None = None,
) -> Plan:
    """Do what is not done. Every check comes first; what was done before is left alone."""
    if jobs > 1 and processes() > 1:
        raise FlowOPDError(
            f"--jobs {jobs} starts processes of its own, which `torchrun` and `accelerate launch` "
            "do, too; use one of the two."
        )
    members = start_team()
    plan, _, _ = checked(study, folder, only=only, kinds=kinds)
    members.wait()  # nobody may check any more when the main process begins to write
    if members.main:
        make_writable(plan.folder)
    lock = locked(plan.folder / LOCK, f"The study in {plan.folder}")
    with lock if members.main else nullcontext():
        todo = select(plan, only, states(plan))
        members.wait()
        if members.main:
            write_atomic(plan.folder / STUDY, dump_yaml(study.config))
        if jobs > 1:
            command = command or worker_command(plan.folder / STUDY, plan.folder)
            failures = Workers(plan, jobs, command).do_all(todo)
        else:
            failures = do_all(plan, todo, members)
        if members.main:
            conclude(plan)
        members.wait()
    members.leave()
    _raise(failures)
    return plan


def run_worker(
    study: Study, folder: Path, stage: str, *, kinds: Mapping[str, Kind] = KINDS
) -> None:
    """One stage, for the process that started this one and holds the study's lock."""
    plan = build_plan(study, folder, kinds=kinds, wanted=[stage])
    do(plan.stages[stage], plan, Alone())


def conclude(plan: Plan) -> None:
    """The results of what is done, and the report."""
    if plan.study.config.evaluation is None:
        return
    from flowopd.reporting.report import write_report

    write_results(plan)
    write_report(plan.folder)


def _refuse_other_contents(study: Study, folder: Path) -> None:
    """Nothing that another study, or something else, wrote is overwritten."""
    check_writable(folder)
    own = folder / STUDY
    if own.is_file():
        there = read_yaml(own)
        if not (folder / LOCK).exists() and not (folder / STAGES).is_dir():
            raise FlowOPDError(
                f"{own} is a study file of someone's, which a run there would overwrite; choose "
                "another --out."
            )
        if there.get("name") != study.config.name:
            raise FlowOPDError(
                f"{folder} holds the study {there.get('name')!r}, and this one is "
                f"{study.config.name!r}; choose another --out."
            )
    elif (folder / RESULTS).exists() and "study" not in read_json(folder / RESULTS):
        raise FlowOPDError(
            f"{folder / RESULTS} is of something else, and would be overwritten; choose another "
            "--out."
        )


def _raise(failures: Failures) -> None:
    if not failures:
        return
    lines = [f"  {name}: {reason}" for name, reason in failures.items()]
    count = "One stage was" if len(lines) == 1 else f"{len(lines)} stages were"
    raise FlowOPDError("\n".join([f"{count} not done; run it again once that is mended.", *lines]))
