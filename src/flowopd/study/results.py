"""The results of a study: the rows of its evaluation over all seeds, and what each row took."""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from flowopd.evaluation.average import Term, average_entry
from flowopd.evaluation.results import row_metrics
from flowopd.evaluation.score_file import Line
from flowopd.files import write_atomic
from flowopd.study.kinds import EVALUATE, Made
from flowopd.study.names import BASE, evaluation_of
from flowopd.study.plan import Plan, Stage
from flowopd.study.records import State, look, verify

RESULTS = "results.json"
AVERAGE = "average"
Row = dict[str, Any]


def write_results(plan: Plan) -> None:
    """Of every row whose evaluation is done for a seed at least."""
    assert plan.job is not None
    assert plan.study.config.evaluation is not None
    content = {
        "study": plan.study.config.name,
        "protocol": plan.job.protocol,
        "average": plan.study.config.evaluation.average,
        "rows": [row for name in plan.rows if (row := _row(plan, name)) is not None],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(plan.folder / RESULTS, text + "\n")


def _row(plan: Plan, row: str) -> Row | None:
    seeds = [name for name in plan.rows[row] if _is_done(plan, name)]
    if not seeds:
        return None
    lines = {name: _lines(plan.stages[evaluation_of(name)]) for name in seeds}
    own = [_sum(plan, [name]) for name in seeds]
    total = [_sum(plan, plan.upstream([name])) for name in seeds]
    return {
        "name": row,
        "metrics": _metrics(plan, [line for found in lines.values() for line in found]),
        "images": round(fmean(made.images for made in own)),
        "images_total": round(fmean(made.images for made in total)),
        "seconds": round(fmean(made.seconds for made in own), 3),
        "seconds_total": round(fmean(made.seconds for made in total), 3),
        "seeds": [{"stage": name, "metrics": _means(plan, lines[name])} for name in seeds],
    }


def _is_done(plan: Plan, name: str) -> bool:
    """Evaluated, with everything there that it stands on."""
    stages = [evaluation_of(name), *([] if name == BASE else plan.upstream([name]))]
    return all(look(plan.stages[stage]).state is State.DONE for stage in stages)


def _lines(stage: Stage) -> list[Line]:
    """The scores that an evaluation wrote, if they still are what it wrote."""
    verify(stage)
    paths = sorted((stage.folder / "scores").glob("[!.]*.jsonl"))
    return [
        json.loads(text) for path in paths for text in path.read_text(encoding="utf-8").splitlines()
    ]


def _metrics(plan: Plan, lines: Sequence[Line]) -> dict[str, Any]:
    """Every metric over the images of all seeds; those of one prompt are one cluster."""
    assert plan.job is not None
    assert plan.study.config.evaluation is not None
    metrics = row_metrics(plan.job.scorers, lines)
    divisors = plan.study.config.evaluation.average
    infos = {info.name: info for scorer in plan.job.scorers for info in scorer.metrics}
    terms = [Term(infos[name], divisor) for name, divisor in divisors.items()]
    return metrics | ({AVERAGE: average_entry(terms, lines)} if terms else {})


def _means(plan: Plan, lines: Sequence[Line]) -> dict[str, float | None]:
    """The means of one seed, without those of single tags."""
    metrics = _metrics(plan, lines)
    return {name: entry["mean"] for name, entry in metrics.items() if "/" not in name}


def _sum(plan: Plan, names: Sequence[str]) -> Made:
    """What the stages took together; evaluations are not counted, and the base is no stage."""
    stages = [plan.stages[name] for name in names if name in plan.stages]
    found = [look(stage).made for stage in stages if stage.kind != EVALUATE]
    made = [one for one in found if one is not None]
    return Made(
        sum(one.images for one in made),
        sum(one.forwards for one in made),
        sum(one.seconds for one in made),
    )
