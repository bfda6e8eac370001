"""Lines of numbers over training: from a stage's log or probes, smoothed, and their mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowopd.reporting.run_files import Line, as_mapping, as_number
from flowopd.reporting.run_folder import AVERAGE, Run

FloatArray = NDArray[np.float64]
Value = Callable[[Line], float | None]

WINDOWS = 25  # a moving average spans one of so many parts of a line
MOST_POINTS = 240  # more than a figure can show


class Track(NamedTuple):
    """One stage's values; ``updates`` tells which of them belong together across seeds."""

    updates: NDArray[np.int64]
    x: FloatArray
    y: FloatArray


def track(lines: Sequence[Line], x: str, value: Value) -> Track:
    """The lines that have both x and a value."""
    pairs = [(line["update"], as_number(line.get(x)), value(line)) for line in lines]
    kept = [pair for pair in pairs if pair[1] is not None and pair[2] is not None]
    updates = np.array([pair[0] for pair in kept], dtype=np.int64)
    return Track(
        updates,
        np.array([pair[1] for pair in kept], dtype=np.float64),
        np.array([pair[2] for pair in kept], dtype=np.float64),
    )


def probe_tracks(run: Run, row: str, metric: str, x: str) -> list[Track]:
    """A metric of the row's probes, one track a seed that has any."""

    def value(line: Line) -> float | None:
        return probe_score(as_mapping(line.get("scores")), metric, run.divisors)

    tracks = (track(stage.probe, x, value) for stage in run.seeds(row))
    return [found for found in tracks if found.x.size]


def probe_score(
    scores: Mapping[str, object], metric: str, divisors: Mapping[str, float]
) -> float | None:
    """A probe's metric; the average is made of the others as in the evaluation."""
    if metric != AVERAGE or metric in scores:
        return as_number(scores.get(metric))
    parts = [(as_number(scores.get(name)), divisor) for name, divisor in divisors.items()]
    known = [value / divisor for value, divisor in parts if value is not None]
    return sum(known) / len(known) if known and len(known) == len(parts) else None


def detector_tracks(run: Run, row: str, detector: str) -> list[Track]:
    """A reward-hacking detector over the row's training, one track a seed that has any."""

    def value(line: Line) -> float | None:
        return as_number(as_mapping(line.get("detectors")).get(detector))

    tracks = (track(stage.probe, "update", value) for stage in run.seeds(row))
    return [found for found in tracks if found.x.size]


def log_tracks(run: Run, row: str, key: str, x: str) -> list[Track]:
    """A key of the row's log, one track a seed that has any."""

    def value(line: Line) -> float | None:
        return as_number(line.get(key))

    tracks = (track(stage.log, x, value) for stage in run.seeds(row))
    return [found for found in tracks if found.x.size]


def mean_track(tracks: Sequence[Track]) -> Track:
    """The mean over seeds, where all of them have a value."""
    if len(tracks) == 1:
        return tracks[0]
    shared = tracks[0].updates
    for other in tracks[1:]:
        shared = np.intersect1d(shared, other.updates)
    places = [np.searchsorted(found.updates, shared) for found in tracks]
    x = np.mean([found.x[at] for found, at in zip(tracks, places, strict=True)], axis=0)
    y = np.mean([found.y[at] for found, at in zip(tracks, places, strict=True)], axis=0)
    return Track(shared, x, y)


def window(found: Track) -> int:
    """How many values a moving average of the track spans; 1: it is too short for one."""
    return max(1, found.x.size // WINDOWS) | 1


def smoothed(found: Track) -> Track:
    """The centred moving average; at the ends over what is there."""
    size = window(found)
    kernel = np.ones(size)
    counts = np.convolve(np.ones_like(found.y), kernel, mode="same")
    return found._replace(y=np.convolve(found.y, kernel, mode="same") / counts)


def thinned(found: Track) -> Track:
    """Means of neighbours, at most `MOST_POINTS` of them."""
    size = -(-found.x.size // MOST_POINTS)
    if size <= 1:
        return found
    starts = np.arange(0, found.x.size, size)
    counts = np.diff(np.append(starts, found.x.size))
    x, y = (np.add.reduceat(values, starts) / counts for values in (found.x, found.y))
    return Track(found.updates[starts], x, y)
