"""The table of an evaluation, for the terminal and as Markdown."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from flowopd.evaluation.results import Row

NO_VALUE = "–"


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The metrics that the rows have, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def cell(metric: dict[str, Any] | None) -> str:
    """``0.512 [0.468, 0.555]``, and how many values are missing."""
    if metric is None or metric["mean"] is None:
        text = NO_VALUE
    elif metric["low"] is None and metric["high"] is None:
        text = f"{metric['mean']:.3f}"
    else:
        text = f"{metric['mean']:.3f} [{_limit(metric['low'])}, {_limit(metric['high'])}]"
    missing = metric["missing"] if metric else 0
    return f"{text} ({missing} missing)" if missing else text


def terminal_table(title: str, rows: Sequence[Row]) -> Table:
    """One line a metric, one column a row of the results; tags are set in under their metric."""
    table = Table(title=f"{title}: mean and 95% interval", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for row in rows:
        table.add_column(row["name"], justify="right")
    table.add_column("images", justify="right")
    for name in metric_names(rows):
        cells = [cell(row["metrics"].get(name)) for row in rows]
        table.add_row(_label(name), *cells, _count(name, rows), style="dim" if "/" in name else "")
    return table


def markdown_table(title: str, rows: Sequence[Row]) -> str:
    """The same as a Markdown document."""
    names = [_escape(row["name"]) for row in rows]
    lines = [
        f"# {_escape(title)}",
        "",
        "Mean and 95% interval (the prompt is the unit that is drawn at random).",
        "",
        f"| metric | {' | '.join(names)} | images |",
        "|---|" + "---:|" * (len(rows) + 1),
    ]
    for name in metric_names(rows):
        cells = [cell(row["metrics"].get(name)) for row in rows]
        lines.append(f"| {_escape(name)} | {' | '.join(cells)} | {_count(name, rows)} |")
    warnings = [f"- {row['name']}: {text}" for row in rows for text in row.get("warnings", ())]
    return "\n".join([*lines, *(["", *warnings] if warnings else [])]) + "\n"


def _label(name: str) -> str:
    metric, slash, tag = name.partition("/")
    return f"  {tag}" if slash else metric


def _count(name: str, rows: Sequence[Row]) -> str:
    counts = {row["metrics"][name]["n"] for row in rows if name in row["metrics"]}
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _limit(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.3f}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
