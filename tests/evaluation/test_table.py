from io import StringIO

from rich.console import Console

from flowopd.evaluation.results import merge_rows
from flowopd.evaluation.table import cell, markdown_table, terminal_table


def metric(mean: float | None, low: float | None, high: float | None, **other: int) -> dict:
    return {"mean": mean, "low": low, "high": high, "n": 8, "missing": 0, **other}


ROWS = [
    {
        "name": "base",
        "metrics": {"compose": metric(0.5, 0.25, 0.75), "compose/colors": metric(1, 0.9, 1)},
    },
    {
        "name": "mine",
        "metrics": {"compose": metric(0.625, 0.5, 0.7, n=6, missing=2)},
        "warnings": ["another guidance"],
    },
]


def test_cells() -> None:
    assert cell(metric(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    assert cell(metric(0.5, None, None)) == "0.500"
    assert cell(metric(0.5, 0.25, None)) == "0.500 [0.250, –]"
    assert cell(metric(None, None, None, missing=3)) == "– (3 missing)"
    assert cell(None) == "–"


def test_markdown() -> None:
    text = markdown_table("a | protocol", ROWS)
    assert "# a \\| protocol" in text
    assert "| metric | base | mine | images |" in text
    assert "| compose | 0.500 [0.250, 0.750] | 0.625 [0.500, 0.700] (2 missing) | 6–8 |" in text
    assert "| compose/colors | 1.000 [0.900, 1.000] | – | 8 |" in text
    assert text.endswith("- mine: another guidance\n")


def test_the_terminal_shows_the_same() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(terminal_table("protocol", ROWS))
    text = console.export_text()
    assert "0.625 [0.500, 0.700] (2 missing)" in text
    assert "  colors" in text


def test_rows_keep_their_place_and_the_base_is_first() -> None:
    rows = merge_rows([], {"name": "mine", "v": 1})
    rows = merge_rows(rows, {"name": "base", "v": 1})
    rows = merge_rows(rows, {"name": "other", "v": 1})
    rows = merge_rows(rows, {"name": "mine", "v": 2})
    assert [(row["name"], row["v"]) for row in rows] == [("base", 1), ("mine", 2), ("other", 1)]
