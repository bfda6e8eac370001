"""The main table of a report, and the one of its finer metrics: every text that stands in them."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from flowopd.reporting.run_files import as_mapping, as_number
from flowopd.reporting.run_folder import AVERAGE, Run

NO_VALUE = "–"
DIGITS = 3
COSTS = {"images": "images", "images_total": "images", "seconds": "s", "seconds_total": "s"}


class Cell(NamedTuple):
    """A mean as it is printed, what stands under it in small type, and whether it is the best."""

    mean: str = NO_VALUE
    interval: str = ""
    seeds: Sequence[str] = ()
    missing: int = 0
    best: bool = False


class TableRow(NamedTuple):
    name: str
    note: str
    """How many seeds it has, or that it is not evaluated yet."""
    cells: Sequence[Cell]
    costs: Sequence[str]


class Table(NamedTuple):
    metrics: Sequence[str]
    rows: Sequence[TableRow]

    @property
    def has_seeds(self) -> bool:
        """Whether any cell shows the means of single seeds."""
        return any(cell.seeds for row in self.rows for cell in row.cells)


def main_metrics(run: Run) -> list[str]:
    """The metrics of the average in its order, the average, then others that are no detail."""
    found = [name for name in _all_metrics(run) if not is_detail(name)]
    first = [name for name in (*run.divisors, AVERAGE) if name in found or not found]
    return list(dict.fromkeys([*first, *found]))


def detail_metrics(run: Run) -> list[str]:
    return [name for name in _all_metrics(run) if is_detail(name)]


def is_detail(metric: str) -> bool:
    """A soft variant, or a part of a metric."""
    return "/" in metric or metric.endswith("_soft")


def table(run: Run, metrics: Sequence[str]) -> Table:
    """Every row of the study, evaluated or not; the best of each metric is marked."""
    best = {metric: best_rows(run, metric) for metric in metrics}
    rows = [
        TableRow(
            name=row,
            note=_note(run, row),
            cells=[_cell(run, row, metric, row in best[metric]) for metric in metrics],
            costs=[_cost(run.entries.get(row, {}).get(key)) for key in COSTS],
        )
        for row in run.rows
    ]
    return Table(metrics, rows)


def best_rows(run: Run, metric: str) -> Collection[str]:
    """Those with the highest mean among the rows that take part, as far as the digits tell."""
    means = {
        row: printed(entry["mean"])
        for row in (run.config.best_of or run.rows)
        if (entry := run.metric(row, metric)) is not None
    }
    highest = max(map(float, means.values()), default=None)
    return {row for row, mean in means.items() if float(mean) == highest}


def printed(value: float) -> str:
    return f"{value:.{DIGITS}f}"


def _all_metrics(run: Run) -> list[str]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(name for entry in run.entries.values() for name in entry["metrics"]))


def _note(run: Run, row: str) -> str:
    if row not in run.entries:
        return "not evaluated yet"
    done, planned = len(run.entries[row].get("seeds") or ()), len(run.seeds(row))
    if done < planned:
        return f"{done} of {planned} seeds"
    return f"{done} seeds" if done > 1 else ""


def _cell(run: Run, row: str, metric: str, best: bool) -> Cell:
    entry = run.metric(row, metric)
    if entry is None:
        return Cell()
    limits = [as_number(entry.get(key)) for key in ("low", "high")]
    shown = [NO_VALUE if limit is None else printed(limit) for limit in limits]
    return Cell(
        mean=printed(entry["mean"]),
        interval="" if limits == [None, None] else f"[{', '.join(shown)}]",
        seeds=_seed_means(run.entries[row].get("seeds") or (), metric),
        missing=entry.get("missing") or 0,
        best=best,
    )


def _seed_means(seeds: Sequence[Any], metric: str) -> list[str]:
    """The means of a row's seeds, where it has more than one and they are known."""
    means = [as_number(as_mapping(as_mapping(seed).get("metrics")).get(metric)) for seed in seeds]
    if len(means) < 2 or means == [None] * len(means):
        return []
    return [NO_VALUE if mean is None else printed(mean) for mean in means]


def _cost(value: Any) -> str:
    known = as_number(value)
    return NO_VALUE if known is None else f"{known:,.0f}"
