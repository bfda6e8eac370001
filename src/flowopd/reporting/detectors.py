"""Reward-hacking detectors over training, as lines the size of a word, stage beside stage."""

from collections.abc import Sequence
from typing import NamedTuple

from flowopd.reporting.run_files import as_mapping
from flowopd.reporting.run_folder import EVALUATION, Run
from flowopd.reporting.tracks import Track, detector_tracks, mean_track, thinned

WIDTH, HEIGHT, MARGIN = 120.0, 30.0, 3.0


class Spark(NamedTuple):
    """Points of polylines in a box of `WIDTH` by `HEIGHT`; the values before and at the end."""

    seeds: Sequence[str]
    mean: str
    start_height: str
    start: str
    end: str


class DetectorRow(NamedTuple):
    name: str
    sparks: Sequence[Spark | None]


class DetectorTable(NamedTuple):
    detectors: Sequence[str]
    rows: Sequence[DetectorRow]


def detector_table(run: Run, names: Sequence[str]) -> DetectorTable:
    """All training stages that have detectors; a detector's heights are the same for all."""
    lines = [line for stage in run.stages.values() for line in stage.probe]
    detectors = list(
        dict.fromkeys(str(name) for line in lines for name in as_mapping(line.get("detectors")))
    )
    tracks = {
        row: {name: found for name in detectors if (found := detector_tracks(run, row, name))}
        for row in names
        if not row.startswith(EVALUATION)
    }
    limits = {
        name: _limits([found.get(name, ()) for found in tracks.values()]) for name in detectors
    }
    rows = [
        DetectorRow(row, [_spark(found.get(name), limits[name]) for name in detectors])
        for row, found in tracks.items()
        if found
    ]
    return DetectorTable(detectors, rows)


def _limits(groups: Sequence[Sequence[Track]]) -> tuple[float, float]:
    values = [value for tracks in groups for found in tracks for value in found.y.tolist()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _spark(tracks: Sequence[Track] | None, limits: tuple[float, float]) -> Spark | None:
    if not tracks:
        return None
    mean = mean_track(tracks)
    if not mean.y.size:
        return None
    last = max(float(found.x[-1]) for found in tracks) or 1.0
    return Spark(
        seeds=[_points(found, last, limits) for found in tracks] if len(tracks) > 1 else [],
        mean=_points(mean, last, limits),
        start_height=f"{_height(float(mean.y[0]), limits):.1f}",
        start=f"{mean.y[0]:.3g}",
        end=f"{mean.y[-1]:.3g}",
    )


def _points(found: Track, last: float, limits: tuple[float, float]) -> str:
    thin = thinned(found)
    pairs = zip(thin.x.tolist(), thin.y.tolist(), strict=True)
    return " ".join(f"{x / last * WIDTH:.1f},{_height(y, limits):.1f}" for x, y in pairs)


def _height(y: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)
