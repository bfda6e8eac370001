"""results.json of a study: rows over their seeds, and what each row took."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import kinds

from flowopd.evaluation.average import Term, average
from flowopd.rewards.scorer import MetricInfo
from flowopd.study.config import load_study
from flowopd.study.run import run_study

pytestmark = pytest.mark.usefixtures("fake_plugins")


@pytest.fixture
def results(study_file: Path, no_report: list[Path]) -> dict[str, Any]:
    folder = study_file.parent / "run"
    run_study(load_study(study_file), folder, kinds=kinds())
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def scores(study_file: Path, name: str) -> list[dict[str, Any]]:
    path = study_file.parent / f"run/stages/eval.{name}/scores/{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_its_shape(results: dict[str, Any]) -> None:
    assert list(results) == ["study", "protocol", "average", "rows"]
    assert results["study"] == "tiny"
    assert results["protocol"]["name"] == "fake protocol"
    assert results["average"] == {"bright": 1, "level": 2}
    assert [row["name"] for row in results["rows"]] == ["base", "t-compose", "opd"]
    assert {tuple(row) for row in results["rows"]} == {
        ("name", "metrics", "images", "images_total", "seconds", "seconds_total", "seeds")
    }
    metrics = results["rows"][2]["metrics"]
    assert set(metrics["average"]) == {"mean", "low", "high", "n", "missing"}
    assert {"bright", "bright/a", "level", "picky", "average"} <= set(metrics)
    assert metrics["average"]["low"] < metrics["average"]["mean"] < metrics["average"]["high"]


def test_a_row_is_over_all_its_seeds(study_file: Path, results: dict[str, Any]) -> None:
    row = results["rows"][2]
    both = [scores(study_file, name) for name in ("opd", "opd.s3")]
    levels = [[line["scores"]["level"] for line in lines] for lines in both]
    assert row["metrics"]["level"]["mean"] == pytest.approx(np.mean(levels))
    assert row["metrics"]["level"]["n"] == 28
    assert [seed["stage"] for seed in row["seeds"]] == ["opd", "opd.s3"]
    for seed, own in zip(row["seeds"], levels, strict=True):
        assert seed["metrics"]["level"] == pytest.approx(np.mean(own))
        assert set(seed["metrics"]) == {"bright", "level", "picky", "average"}
    assert levels[0] != levels[1]
    terms = [Term(MetricInfo("bright", 0, 1, strata=True), 1), Term(MetricInfo("level", 0, 1), 2)]
    expected = average(terms, [*both[0], *both[1]])
    assert row["metrics"]["average"] == {**expected._asdict(), "missing": 0}
    picky = row["metrics"]["picky"]
    assert (picky["n"], picky["missing"]) == (8, 4)


def test_what_a_row_took(results: dict[str, Any]) -> None:
    """16 images and 2 seconds each training; the merge stands on two, the student on all three."""
    rows = {row["name"]: row for row in results["rows"]}
    took = {name: (row["images"], row["images_total"]) for name, row in rows.items()}
    assert took == {"base": (0, 0), "t-compose": (16, 16), "opd": (16, 48)}
    assert rows["t-compose"]["seconds"] == rows["t-compose"]["seconds_total"] == 2.0
    assert rows["opd"]["seconds"] == 2.0
    assert 6.0 <= rows["opd"]["seconds_total"] < 7.0
    assert (rows["base"]["seconds"], rows["base"]["seconds_total"]) == (0, 0)


def test_what_is_changed_is_left_out(study_file: Path, results: dict[str, Any]) -> None:
    folder, change = study_file.parent / "run", ["stages.t-text.train.updates=5"]
    run_study(load_study(study_file, change), folder, only=["t-text"], kinds=kinds())
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["base", "t-compose"]


def test_one_seed_of_two(study_file: Path, results: dict[str, Any]) -> None:
    folder, change = study_file.parent / "run", ["stages.opd.seeds=[0, 4]"]
    only = ["t-text"]
    run_study(load_study(study_file, change), folder, only=only, kinds=kinds())
    row = json.loads((folder / "results.json").read_text())["rows"][2]
    assert [seed["stage"] for seed in row["seeds"]] == ["opd"]
    assert row["metrics"]["level"]["n"] == 14


def test_without_an_average(study_file: Path, no_report: list[Path]) -> None:
    folder = study_file.parent / "run"
    study = load_study(study_file, ["evaluation.average={}"])
    run_study(study, folder, only=["eval.base"], kinds=kinds())
    row = json.loads((folder / "results.json").read_text())["rows"][0]
    assert "average" not in row["metrics"]


def test_without_an_evaluation(study_file: Path, no_report: list[Path]) -> None:
    folder = study_file.parent / "run"
    run_study(load_study(study_file, ["evaluation=null"]), folder, kinds=kinds())
    assert not (folder / "results.json").exists()
    assert no_report == []


def test_the_report_is_written(study_file: Path) -> None:
    folder = study_file.parent / "run"
    figures = (
        "report.figures=[{kind: bars, rows: [base, opd], metrics: [bright, level]},"
        "{kind: curves, rows: [opd], metrics: [bright]}]"
    )
    run_study(load_study(study_file, [figures]), folder, kinds=kinds())
    page = (folder / "report.html").read_text()
    assert "opd" in page
    assert "<svg" in page or "data:image" in page
