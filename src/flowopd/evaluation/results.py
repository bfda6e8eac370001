"""From the scores of images to a row of metrics, and rows into ``results.json``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.evaluation.intervals import Bounds, Interval, interval, stratified
from flowopd.evaluation.protocol import BASE
from flowopd.evaluation.score_file import Line
from flowopd.files import write_atomic
from flowopd.rewards.scorer import MetricInfo, Scorer

Row = dict[str, Any]
UNTAGGED = "untagged"


def row_metrics(scorers: Sequence[Scorer], lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Every metric of a row, strata's own as ``metric/tag``."""
    metrics: dict[str, dict[str, Any]] = {}
    for scorer in scorers:
        for info in scorer.metrics:
            metrics |= metric_entries(info, [line for line in lines if info.name in line["scores"]])
    return metrics


def metric_entries(info: MetricInfo, lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """The entry of one metric; with strata, also an entry for each tag."""
    if not info.strata:
        return {info.name: _entry(_interval(info, lines), info, lines)}
    tags = sorted({line["tag"] for line in lines})
    groups = {tag: [line for line in lines if line["tag"] == tag] for tag in tags}
    strata = {tag: _interval(info, group) for tag, group in groups.items()}
    entries = {info.name: _entry(stratified(strata), info, lines)}
    if tags == [""]:
        return entries
    for tag, group in groups.items():
        entries[f"{info.name}/{tag or UNTAGGED}"] = _entry(strata[tag], info, group)
    return entries


def _interval(info: MetricInfo, lines: Sequence[Line]) -> Interval:
    present = [line for line in lines if line["scores"][info.name] is not None]
    values = [line["scores"][info.name] for line in present]
    clusters = [line["prompt_index"] for line in present]
    return interval(values, clusters, Bounds(info.low, info.high))


def _entry(found: Interval, info: MetricInfo, lines: Sequence[Line]) -> dict[str, Any]:
    missing = sum(line["scores"][info.name] is None for line in lines)
    return {**found._asdict(), "missing": missing}


def read_results(path: Path, protocol_hash: str, model: str | None = None) -> list[Row]:
    """The rows of an earlier run with this protocol (and model); another's is refused."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known, rows = found["protocol"]["hash"], list(found["rows"])
        bases = {row["model"]["sha256"]: row["model"]["name"] for row in rows}
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        raise FlowOPDError(
            f"{path} is no results file of flowopd; choose another --out, or move it away."
        ) from None
    if known != protocol_hash:
        raise FlowOPDError(
            f"{path} holds results of another protocol ({found['protocol'].get('name')!r}: other "
            "prompts, seeds, sampling or scorers); choose another --out."
        )
    others = {name for base, name in bases.items() if model and base != model}
    if others:
        raise FlowOPDError(
            f"{path} holds results of another base model ({', '.join(sorted(others))}); choose "
            "another --out."
        )
    return rows


def merge_rows(rows: Sequence[Row], new: Row) -> list[Row]:
    """The rows with ``new`` in the place of the one of its name, or last; the base comes first."""
    names = [row["name"] for row in rows]
    if new["name"] in names:
        merged = [new if row["name"] == new["name"] else row for row in rows]
    else:
        merged = [*rows, new]
    return sorted(merged, key=lambda row: row["name"] != BASE)


def write_results(path: Path, protocol: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the whole file, or leave the old one."""
    content = json.dumps({"protocol": protocol, "rows": rows}, indent=2, ensure_ascii=False)
    write_atomic(path, content + "\n")
