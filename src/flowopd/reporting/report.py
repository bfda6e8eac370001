"""The report of a study: one HTML file that needs nothing outside it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowopd.files import write_atomic
from flowopd.reporting import detectors
from flowopd.reporting.detectors import detector_table
from flowopd.reporting.drawn import Drawn
from flowopd.reporting.facts import methods, summary, unfinished, warnings
from flowopd.reporting.figures import draw_figure, row_looks
from flowopd.reporting.pictures import panel_grid, training_sheets
from flowopd.reporting.run_files import as_mapping
from flowopd.reporting.run_folder import Run, read_run
from flowopd.reporting.stage_records import as_yaml, evaluations, group_names, stage_groups
from flowopd.reporting.tables import detail_metrics, main_metrics, table

REPORT = "report.html"
TEMPLATE = "report.html.j2"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a study, finished or not."""
    path = folder / REPORT
    write_atomic(path, render(read_run(folder)))
    return path


def render(run: Run) -> str:
    """The page. It depends on nothing but the run's folder."""
    environment = Environment(
        loader=PackageLoader("flowopd.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(context(run))


def context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    looks = row_looks(run)
    drawn = [
        draw_figure(run, figure, looks, f"figure-{number}")
        for number, figure in enumerate(run.config.figures, 1)
    ]
    groups = group_names(run)
    details = detail_metrics(run)
    sheets = {name: training_sheets(run, run.stages[name]) for name in groups}
    return {
        "title": run.config.title or run.name,
        "intro": run.config.intro,
        "summary": summary(run),
        "unfinished": unfinished(run),
        "warnings": warnings(run),
        "looks": looks,
        "table": table(run, main_metrics(run)),
        "details": table(run, details) if details else None,
        "best_of": run.config.best_of,
        "divisors": run.divisors,
        "figures": [_safe(figure) for figure in drawn],
        "panels": panel_grid(run),
        "detectors": detector_table(run, groups),
        "spark": {"width": detectors.WIDTH, "height": detectors.HEIGHT},
        "sheets": {name: found for name, found in sheets.items() if found},
        "stages": stage_groups(run),
        "evaluations": evaluations(run),
        "methods": methods(run),
        "protocol": as_yaml(as_mapping(run.results.get("protocol"))),
        "problems": run.files.problems,  # last: reading the pictures may have added some
    }


def _safe(figure: Drawn) -> Drawn:
    """The panels are our own markup, in which names are escaped already."""
    return figure._replace(panels=[Markup(panel) for panel in figure.panels])
