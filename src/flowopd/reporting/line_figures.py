"""Figures over training: probes with their goals, gradient interference, any key of the log."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from flowopd.reporting import config as kinds
from flowopd.reporting.drawn import Drawn, lines_size, missing, panel_svgs
from flowopd.reporting.labels import can_name
from flowopd.reporting.line_plots import LinePanel, Reference, draw_lines
from flowopd.reporting.looks import Look
from flowopd.reporting.run_folder import Run
from flowopd.reporting.tracks import Track, log_tracks, mean_track, probe_tracks, window

INTERFERENCE = "interference/"
UNITS = {"images": "images", "seconds": "s", "update": "updates"}


def curves(run: Run, figure: kinds.Curves, looks: Mapping[str, Look], key: str) -> Drawn:
    panels, notes = [], []
    for metric in figure.metrics:
        tracks = _tracks(figure.rows, partial(probe_tracks, run, metric=metric, x=figure.x))
        goal = _goal(run, figure, metric)
        panels.append(LinePanel(metric, figure.x, tracks, reference=goal))
        if goal is not None and tracks:
            notes.append(_reached(metric, goal, tracks, figure.x))
        elif goal is None and metric in figure.goals:
            row = figure.goals[metric].row
            notes.append(f"The goal of {metric} is not known yet: {row} is not evaluated.")
    notes += _seed_notes(panels)
    return _lines(figure, panels, notes, looks, key)


def interference(
    run: Run, figure: kinds.Interference, looks: Mapping[str, Look], key: str
) -> Drawn:
    lines = [line for row in figure.rows for stage in run.seeds(row) for line in stage.log]
    names = [name for line in lines for name in line if name.startswith(INTERFERENCE)]
    panels = []
    for name in dict.fromkeys(names):
        tracks = _tracks(figure.rows, partial(log_tracks, run, key=name, x="images"))
        pair = name.removeprefix(INTERFERENCE).replace("|", " and ")
        panels.append(LinePanel(pair, "images", tracks, smooth=True, zero=True))
    panels = [panel._replace(limits=_shared_limits(panels)) for panel in panels]
    notes = [*_smoothing_notes(panels), *_seed_notes(panels)]
    return _lines(figure, panels, notes, looks, key)


def log(run: Run, figure: kinds.Log, looks: Mapping[str, Look], key: str) -> Drawn:
    panels = []
    for name in figure.keys:
        tracks = _tracks(figure.rows, partial(log_tracks, run, key=name, x=figure.x))
        panels.append(LinePanel(name, figure.x, tracks, smooth=True))
    notes = [*_smoothing_notes(panels), *_seed_notes(panels)]
    return _lines(figure, panels, notes, looks, key)


def _lines(
    figure: kinds.Curves | kinds.Interference | kinds.Log,
    panels: Sequence[LinePanel],
    notes: list[str],
    looks: Mapping[str, Look],
    key: str,
) -> Drawn:
    drawn = {row for panel in panels for row in panel.rows}
    notes += missing("nothing recorded yet", [row for row in figure.rows if row not in drawn])
    shown = [row for row in figure.rows if row in drawn]
    named = can_name(shown)
    draws = {
        panel.title: partial(draw_lines, panel=panel._replace(named=named), looks=looks)
        for panel in panels
        if panel.rows
    }
    legend = {} if named else {row: looks[row] for row in shown}
    svgs = panel_svgs(draws, key, lines_size(shown, named))
    return Drawn(figure.title, figure.caption, svgs, notes, legend)


def _tracks(
    rows: Sequence[str], found: Callable[[str], Sequence[Track]]
) -> dict[str, Sequence[Track]]:
    """The rows that have any."""
    tracks = {row: found(row) for row in rows}
    return {row: entry for row, entry in tracks.items() if entry}


def _goal(run: Run, figure: kinds.Curves, metric: str) -> Reference | None:
    goal = figure.goals.get(metric)
    entry = run.metric(goal.row, metric) if goal else None
    if goal is None or entry is None:
        return None
    share = "" if goal.share == 1 else f"{goal.share:.0%} of "
    return Reference(goal.share * entry["mean"], f"{share}{goal.row}")


def _reached(
    metric: str, goal: Reference, tracks: Mapping[str, Sequence[Track]], x: kinds.Axis
) -> str:
    """Where each row's mean is at the goal for the first time, or what its best is until now."""
    at, not_yet = [], []
    for row, found in tracks.items():
        mean = mean_track(found)
        above = mean.x[mean.y >= goal.value]
        if above.size:
            at.append(f"{row} at {above[0]:,.0f} {UNITS[x]}")
        elif mean.x.size:
            not_yet.append(f"{row} ({mean.y.max():.3f} at most in {mean.x[-1]:,.0f} {UNITS[x]})")
    reached = f"reached by {', '.join(at)}" if at else "reached by none"
    missed = f"; not by {', '.join(not_yet)}" if not_yet else ""
    return f"The goal of {metric}, {goal.text}, is {goal.value:.3f}: {reached}{missed}."


def _shared_limits(panels: Sequence[LinePanel]) -> tuple[float, float]:
    """The same for all, around zero and all values that are drawn, within a cosine's bounds."""
    values = [
        value
        for panel in panels
        for tracks in panel.rows.values()
        for found in tracks
        for value in found.y.tolist()
    ]
    reach = min(1.05, 1.1 * max((abs(value) for value in values), default=1.0))
    return -reach, reach


def _smoothing_notes(panels: Sequence[LinePanel]) -> list[str]:
    sizes = {
        window(found) for panel in panels for tracks in panel.rows.values() for found in tracks
    }
    if not sizes or max(sizes) == 1:
        return []
    least, most = min(sizes), max(sizes)
    spans = f"{most}" if least == most else f"{least} to {most}"
    return [f"Lines are moving averages over {spans} values."]


def _seed_notes(panels: Sequence[LinePanel]) -> list[str]:
    seeds = {len(tracks) for panel in panels for tracks in panel.rows.values()}
    if max(seeds, default=1) == 1:
        return []
    return ["Where a row has several seeds, thin lines are seeds and the thick one is their mean."]
