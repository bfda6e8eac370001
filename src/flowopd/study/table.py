"""A study as a table: what there is to do, and how far it is."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flowopd.evaluation.table import cell, metric_names
from flowopd.study.kinds import TRAIN, Work
from flowopd.study.plan import Plan, Stage
from flowopd.study.records import Found, State, last_line, read_json, resumes_at
from flowopd.study.results import AVERAGE, RESULTS

LOG = "log.jsonl"
NOTHING = "–"


def plan_table(plan: Plan, found: Mapping[str, Found]) -> Table:
    """Every stage with what it will take, and what is left to do in total."""
    table = _table(plan, ("images", "forwards"))
    left = Work()
    for name, stage in plan.stages.items():
        work = plan.kind(stage).estimate(stage.config)
        if found[name].state is not State.DONE:
            left = Work(left.images + work.images, left.forwards + work.forwards)
        table.add_row(*_start(stage, plan, found), _number(work.images), _number(work.forwards))
    table.add_section()
    table.add_row("to do", "", "", "", _number(left.images), _number(left.forwards), style="bold")
    return table


def status_table(plan: Plan, found: Mapping[str, Found]) -> Table:
    """Every stage with how far it is and what it has taken."""
    table = _table(plan, ("progress", "images", "seconds"))
    images, seconds = 0, 0.0
    for name, stage in plan.stages.items():
        state, made = found[name].state, found[name].made
        line: dict[str, Any] = {}
        if made is not None:
            line = {"images": made.images, "seconds": made.seconds}
        elif state is State.STARTED and stage.kind == TRAIN:
            line = last_line(stage.folder / LOG)
        images, seconds = images + line.get("images", 0), seconds + line.get("seconds", 0)
        table.add_row(
            *_start(stage, plan, found),
            _progress(stage, line, state),
            _number(line.get("images", 0)),
            _number(round(line.get("seconds", 0))),
        )
    table.add_section()
    table.add_row("taken", "", "", "", "", _number(images), _number(round(seconds)), style="bold")
    return table


def results_table(plan: Plan) -> Table:
    """The rows that are evaluated: the metrics of the average (or all), and what each row took."""
    evaluation = plan.study.config.evaluation
    rows = read_json(plan.folder / RESULTS).get("rows", [])
    names = [name for name in metric_names(rows) if "/" not in name]
    if evaluation is not None and evaluation.average:
        names = [*evaluation.average, AVERAGE]
    table = Table(title=f"{plan.study.config.name}: mean and 95% interval", title_justify="left")
    table.add_column("row", no_wrap=True)
    for column in (*names, "images", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [cell(row["metrics"].get(name)) for name in names]
        images, seconds = row["images_total"], round(row["seconds_total"])
        table.add_row(row["name"], *cells, _number(images), _number(seconds))
    return table


def state_text(stage: Stage, plan: Plan, found: Mapping[str, Found]) -> str:
    """The state in words; of a changed stage, whether the change is its own."""
    state = found[stage.name].state
    if state is State.STARTED:
        update = resumes_at(stage)
        return "resume" if update is None else f"resume at update {update}"
    if state is State.CHANGED:
        changed = [n for n in stage.needs if found[n].state in (State.CHANGED, State.STARTED)]
        return f"changed with {changed[0]}" if changed else "changed"
    return state.value


def _table(plan: Plan, numbers: tuple[str, ...]) -> Table:
    title = f"{plan.study.config.name} in {plan.folder}"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "kind", "needs", "state"):
        table.add_column(column, no_wrap=column == "stage")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _start(stage: Stage, plan: Plan, found: Mapping[str, Found]) -> tuple[str, ...]:
    needs = ", ".join(stage.needs) or NOTHING
    return stage.name, stage.kind, needs, state_text(stage, plan, found)


def _progress(stage: Stage, line: Mapping[str, Any], state: State) -> str:
    updates = getattr(stage.config, "updates", None)
    if stage.kind != TRAIN or updates is None or state in (State.NEW, State.CHANGED):
        return NOTHING
    return f"{updates if state is State.DONE else line.get('update', 0)}/{updates}"


def _number(value: int) -> str:
    return f"{value:,}" if value else NOTHING
