"""What a study's key ``report`` may say, and the sentences on what it may not."""

from typing import Any

import pytest
import yaml
from report_study import AVERAGE, FIGURES, ROWS

from flowopd.config import Config, build, dump_yaml
from flowopd.errors import FlowOPDError
from flowopd.reporting.config import Bars, Curves, Figure, ReportConfig, check_report

METRICS = [*AVERAGE, "average", "diversity"]
BARS = {"kind": "bars", "rows": ["base"], "metrics": ["text"]}


class Study(Config):
    name: str
    report: ReportConfig = ReportConfig()


def report(*figures: dict[str, Any], **keys: Any) -> ReportConfig:
    return build(ReportConfig, {"figures": list(figures), **keys}, prefix="report")


def test_figures_are_of_their_kinds() -> None:
    config = build(Study, {"name": "s", "report": {"title": "T", "figures": FIGURES}}).report
    assert [type(figure).__name__.lower() for figure in config.figures] == [
        figure["kind"] for figure in FIGURES
    ]
    curves = config.figures[1]
    assert isinstance(curves, Curves)
    assert curves.x == "images"
    assert curves.goals["compose"].share == 0.95
    check_report(config, list(ROWS), METRICS)
    check_report(config, list(ROWS), METRICS, set(ROWS) - {"base"})


def test_a_study_written_out_is_read_back() -> None:
    config = build(Study, {"name": "s", "report": {"figures": FIGURES, "best_of": ["base"]}})
    assert build(Study, yaml.safe_load(dump_yaml(config))) == config


def test_a_figure_may_be_given_as_one() -> None:
    bars = Bars(rows=["base"], metrics=["text"])
    assert ReportConfig(figures=[bars]).figures == [bars]
    assert ReportConfig().figures == []
    assert list(Figure().metric_names()) == []


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ({"rows": ["base"]}, "figure 'report.figures.0' has no kind; the kinds are: bars, curves,"),
        (
            {"kind": "pie"},
            "figure 'report.figures.0' is of the kind 'pie'; the kinds are: bars",
        ),
        (BARS | {"rowz": []}, r"Unknown key 'report\.figures\.0\.rowz'\. Did you mean .*rows'\?"),
        ({"kind": "bars", "rows": ["base"]}, "The key 'report.figures.0.metrics' is missing"),
        (BARS | {"rows": []}, "The key 'report.figures.0.rows' is .*at least 1 item"),
        (BARS | {"rows": ["a", "b", "a"]}, "each may be named once, and a is there again"),
        (
            {"kind": "curves", "rows": ["a"], "metrics": ["text"], "x": "epochs"},
            "The key 'report.figures.0.x' is 'epochs'; .*'images', 'seconds' or 'update'",
        ),
        (
            {
                "kind": "curves",
                "rows": ["a"],
                "metrics": ["text"],
                "goals": {"quality": {"row": "a"}},
            },
            r"goals are for the figure's metrics \(text\), and quality is none of them",
        ),
        (
            {
                "kind": "curves",
                "rows": ["a"],
                "metrics": ["text"],
                "goals": {"text": {"row": "a", "share": 0}},
            },
            "The key 'report.figures.0.goals.text.share' is 0; it should be greater than 0",
        ),
        ({"kind": "points", "metrics": ["text"], "series": {}}, "report.figures.0.series"),
    ],
)
def test_what_a_figure_may_not_be(figure: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        report(figure)


def test_figures_that_are_no_list() -> None:
    with pytest.raises(FlowOPDError, match=r"The key 'report\.figures' is 'bars'; .*valid list"):
        build(ReportConfig, {"figures": "bars"}, prefix="report")


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (
            BARS | {"rows": ["base", "opd-mege"]},
            r"The key 'report\.figures\.0\.rows\.1' names 'opd-mege', which is no row of this "
            r"study\. Did you mean 'opd-merge'\? The rows are: base,",
        ),
        (
            BARS | {"metrics": ["txt"]},
            r"'report\.figures\.0\.metrics\.0' names 'txt', which is no metric of this study\. Did "
            r"you mean 'text'\?",
        ),
        (
            {"kind": "points", "metrics": ["text"], "series": {"uniform": {"4": "opd-4"}}},
            r"'report\.figures\.0\.series\.uniform\.4' names 'opd-4', which is no row",
        ),
        (
            FIGURES[1] | {"goals": {"text": {"row": "teacher"}}},
            r"'report\.figures\.0\.goals\.text\.row' names 'teacher', which is no row",
        ),
        ({"kind": "log", "rows": ["grpo"], "keys": ["loss"]}, "names 'grpo', which is no row"),
    ],
)
def test_names_that_the_study_does_not_have(figure: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError, match=sentence):
        check_report(report(figure), list(ROWS), METRICS)


def test_only_what_trains_has_curves() -> None:
    config = report({"kind": "interference", "rows": ["merged"]})
    check_report(config, ["merged", "nft"], METRICS)
    with pytest.raises(FlowOPDError, match="names 'merged', which is no training stage of this"):
        check_report(config, ["merged", "nft"], METRICS, ["nft"])
    check_report(config, ["nft"], METRICS, ["merged"])  # trained, and not evaluated


def test_best_of_names_rows() -> None:
    with pytest.raises(FlowOPDError, match=r"'report\.best_of' names 'bse', .*mean 'base'"):
        check_report(report(best_of=["bse"]), list(ROWS), METRICS)
