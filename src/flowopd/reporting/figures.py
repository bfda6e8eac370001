"""The figures of a report: each kind of the configuration as panels, a legend and notes."""

from collections.abc import Mapping, Sequence
from functools import partial

from flowopd.reporting import config as kinds
from flowopd.reporting.drawn import Drawn, lines_size, listed, missing, panel_svgs
from flowopd.reporting.labels import can_name
from flowopd.reporting.line_figures import curves, interference, log
from flowopd.reporting.looks import Look, look, looks
from flowopd.reporting.plot import Size, text_width
from flowopd.reporting.result_plots import NAME_SIZE, Mark, Point, draw_bars, draw_points, is_zoomed
from flowopd.reporting.run_files import as_number
from flowopd.reporting.run_folder import BASE, Run

BARS_WIDTH, BARS_LEAST = 300.0, 180.0  # with the names, and without them at least
BAR_HEIGHT, BARS_REST = 18.0, 48.0


def row_looks(run: Run) -> dict[str, Look]:
    """The look of every row and training stage; those that meet in a panel of lines come first."""
    lines = [used.name for figure in run.config.figures for used in figure.training_rows()]
    bars = [used.name for figure in run.config.figures for used in figure.result_rows()]
    return looks([*lines, *bars, *run.rows, *run.stages], BASE)


def draw_figure(run: Run, figure: kinds.Figure, looks: Mapping[str, Look], key: str) -> Drawn:
    """One figure of the configuration; the ids in its panels begin with ``key``."""
    if isinstance(figure, kinds.Bars):
        return _bars(run, figure, looks, key)
    if isinstance(figure, kinds.Points):
        return _points(run, figure, key)
    if isinstance(figure, kinds.Curves):
        return curves(run, figure, looks, key)
    if isinstance(figure, kinds.Interference):
        return interference(run, figure, looks, key)
    if isinstance(figure, kinds.Log):
        return log(run, figure, looks, key)
    raise TypeError(f"there is no drawing of {type(figure).__name__}")


def _bars(run: Run, figure: kinds.Bars, looks: Mapping[str, Look], key: str) -> Drawn:
    draws, zoomed = {}, []
    for metric in figure.metrics:
        marks = {row: _mark(run, row, metric) for row in figure.rows}
        known = [mark.mean for mark in marks.values() if mark is not None]
        if known:
            draws[metric] = partial(draw_bars, metric=metric, marks=marks, looks=looks)
        if is_zoomed(known):
            zoomed.append(metric)
    notes = []
    if zoomed:
        notes.append(f"The axis of {listed(zoomed)} does not begin at zero.")
    if figure.rows[0] in run.entries:
        notes.append(f"The vertical line is at {figure.rows[0]}.")
    notes += _not_evaluated(run, figure.rows)
    panels = panel_svgs(draws, key, _bars_size(figure.rows))
    return Drawn(figure.title, figure.caption, panels, notes, {}, narrow=True)


def _bars_size(rows: Sequence[str]) -> Size:
    names = 8 + max(text_width(row, NAME_SIZE) for row in rows)
    height = BARS_REST + BAR_HEIGHT * len(rows)
    return Size(max(BARS_WIDTH, names + BARS_LEAST), height, left=names, bottom=22)


def _points(run: Run, figure: kinds.Points, key: str) -> Drawn:
    own = {name: look(number) for number, name in enumerate(figure.series)}
    draws = {}
    for metric in figure.metrics:
        series = {
            name: [
                Point(x, mark)
                for x, row in places.items()
                if (mark := _mark(run, row, metric)) is not None
            ]
            for name, places in figure.series.items()
        }
        if any(series.values()):
            draws[metric] = partial(
                draw_points, metric=metric, series=series, looks=own, x_label=figure.x_label
            )
    rows = [row for places in figure.series.values() for row in places.values()]
    named = can_name(list(own))
    panels = panel_svgs(draws, key, lines_size(list(own), named))
    notes = _not_evaluated(run, list(dict.fromkeys(rows)))
    return Drawn(figure.title, figure.caption, panels, notes, {} if named else own)


def _not_evaluated(run: Run, rows: Sequence[str]) -> list[str]:
    return missing("not evaluated yet", [row for row in rows if row not in run.entries])


def _mark(run: Run, row: str, metric: str) -> Mark | None:
    entry = run.metric(row, metric)
    if entry is None:
        return None
    return Mark(entry["mean"], as_number(entry.get("low")), as_number(entry.get("high")))
