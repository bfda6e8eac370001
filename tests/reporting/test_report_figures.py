"""Tracks, labels, looks and marks by hand-computed values; what the drawings say in words."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_study import AVERAGE, FIGURES, write_json, write_lines, write_study

from flowopd.config import build
from flowopd.reporting import tracks
from flowopd.reporting.config import KINDS
from flowopd.reporting.figures import draw_figure, row_looks
from flowopd.reporting.labels import can_name, spread
from flowopd.reporting.looks import look, looks, mixed
from flowopd.reporting.pictures import PICTURE, shown
from flowopd.reporting.plot import Size, svg, thousands
from flowopd.reporting.result_plots import Mark, is_zoomed
from flowopd.reporting.run_files import as_number
from flowopd.reporting.run_folder import Run, read_run
from flowopd.reporting.tracks import Track, mean_track, probe_score, smoothed, thinned, track


def line(*values: float, step: int = 1) -> Track:
    count = len(values)
    updates = np.arange(count) * step
    return Track(updates, updates * 10.0, np.array(values, dtype=float))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "run", figures=[])


def drawn(run: Run, **keys: Any) -> Any:
    figure = build(KINDS[keys["kind"]], keys)
    return draw_figure(run, figure, row_looks(run), "figure-1")


class TestTracks:
    def test_lines_without_a_number_are_left_out(self) -> None:
        lines = [
            {"update": 1, "images": 8, "loss": 0.5},
            {"update": 2, "images": 16},
            {"update": 3, "images": 24, "loss": float("nan")},
            {"update": 4, "images": 32, "loss": "high"},
            {"update": 5, "images": 40, "loss": 0.25},
        ]
        found = track(lines, "images", lambda line: as_number(line.get("loss")))
        assert found.updates.tolist() == [1, 5]
        assert found.x.tolist() == [8, 40]
        assert found.y.tolist() == [0.5, 0.25]

    def test_the_mean_is_over_updates_that_all_seeds_have(self) -> None:
        mean = mean_track([line(1, 2, 3), line(3, 8)])
        assert mean.updates.tolist() == [0, 1]
        assert mean.y.tolist() == [2, 5]
        slow = line(5, 5)._replace(x=np.array([0.0, 30.0]))
        assert mean_track([line(1, 1), slow]).x.tolist() == [0, 20]  # seconds differ by seed
        assert mean_track([line(1), line(1)._replace(updates=np.array([7]))]).y.size == 0

    def test_a_moving_average_is_shorter_at_the_ends(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(tracks, "WINDOWS", 2)
        assert tracks.window(line(*range(6))) == 3
        assert smoothed(line(0, 3, 6, 0, 0, 9)).y.tolist() == [1.5, 3, 3, 2, 3, 4.5]

    def test_short_lines_stay_as_they_are(self) -> None:
        assert smoothed(line(0, 9, 0)).y.tolist() == [0, 9, 0]

    def test_long_lines_become_means_of_neighbours(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(tracks, "MOST_POINTS", 2)
        found = thinned(line(1, 3, 5, 10))
        assert found.y.tolist() == [2, 7.5]
        assert found.x.tolist() == [5, 25]
        assert thinned(line(1, 3)).y.tolist() == [1, 3]

    def test_the_average_of_a_probe_is_that_of_the_evaluation(self) -> None:
        scores = {"compose": 0.5, "text": 0.7, "quality": 4.0, "preference": 0.2}
        average = probe_score(scores, "average", AVERAGE)
        assert average == pytest.approx((0.5 + 0.7 + 0.8 + 0.2) / 4)
        assert probe_score({"compose": 0.5}, "average", AVERAGE) is None
        assert probe_score(scores, "average", {}) is None


class TestLabels:
    def test_names_are_moved_apart_around_where_they_were(self) -> None:
        found = spread({"a": 0.50, "b": 0.52, "c": 0.90}, 0.1)
        assert found == pytest.approx({"a": 0.46, "b": 0.56, "c": 0.90})

    def test_groups_that_meet_become_one(self) -> None:
        found = spread({"a": 0.50, "b": 0.50, "c": 0.57}, 0.1)
        assert found["a"] == pytest.approx(0.5233333 - 0.1)
        assert sorted(found.values()) == pytest.approx([0.4233333, 0.5233333, 0.6233333])

    def test_none_falls_below_the_axes(self) -> None:
        assert spread({"a": 0.0, "b": 0.0}, 0.1, lowest=0.03) == pytest.approx(
            {"a": 0.03, "b": 0.13}
        )

    def test_many_or_long_names_need_a_legend(self) -> None:
        assert can_name(["opd-merge", "grpo-mix"])
        assert not can_name([f"row-{number}" for number in range(7)])
        assert not can_name(["a-row-with-a-name-that-goes-on-and-on"])


class TestLooks:
    def test_every_row_has_its_own(self) -> None:
        found = looks([f"row-{number}" for number in range(28)] + ["base"], "base")
        assert len(found) == 29
        assert len({(one.color, one.dash) for one in found.values()}) == 29
        assert len({(one.color, one.fill) for one in found.values()}) == 29
        assert found["base"].color == "#6f6f6f"

    def test_rows_of_the_second_round_are_dashed_and_pale(self) -> None:
        first, second = look(0), look(7)
        assert second.color == first.color
        assert first.dash == "solid" != second.dash
        assert first.fill == first.color != second.fill

    def test_mixing(self) -> None:
        assert mixed("#000000", "#ffffff", 0.5) == "#808080"
        assert mixed("#0072b2", "#ffffff", 0) == "#0072b2"

    def test_rows_keep_their_look_while_the_study_goes_on(self, study: Path) -> None:
        before = row_looks(read_run(study))
        (study / "results.json").unlink()
        assert row_looks(read_run(study)) == before


class TestMarks:
    def test_unknown_limits_have_no_length(self) -> None:
        assert Mark(0.5, None, None).below == Mark(0.5, None, None).above == 0
        assert Mark(0.5, 0.4, 0.7).below == pytest.approx(0.1)
        assert Mark(0.5, 0.4, 0.7).above == pytest.approx(0.2)

    def test_small_differences_are_not_drawn_as_bars(self) -> None:
        assert is_zoomed([4.1, 4.3])
        assert not is_zoomed([0.5, 0.9])
        assert not is_zoomed([-0.1, 0.1])
        assert not is_zoomed([])

    def test_numbers_on_axes(self) -> None:
        assert [thousands(value) for value in (0, 0.25, 950, 2500, 12000, 3e6)] == [
            "0",
            "0.25",
            "950",
            "2.5k",
            "12k",
            "3M",
        ]


class TestDrawings:
    def test_where_a_goal_is_reached(self, study: Path) -> None:
        values = {"nft": (0.4, 0.8, 0.9), "opd-sft": (0.4, 0.5, 0.6)}
        for row, scores in values.items():
            lines = [
                {"update": at, "images": at * 100, "scores": {"compose": score}}
                for at, score in enumerate(scores)
            ]
            write_lines(study / "stages" / row / "probe.jsonl", lines)
        goals = {"compose": {"row": "teacher-compose", "share": 0.9}}
        figure = drawn(
            read_run(study), kind="curves", rows=list(values), metrics=["compose"], goals=goals
        )
        assert figure.notes == [
            "The goal of compose, 90% of teacher-compose, is 0.784: reached by nft at 100 images; "
            "not by opd-sft (0.600 at most in 200 images)."
        ]

    def test_a_goal_that_is_not_known_yet(self, study: Path) -> None:
        write_json(study / "results.json", {"rows": []})
        goals = {"compose": {"row": "teacher-compose"}}
        figure = drawn(
            read_run(study), kind="curves", rows=["nft"], metrics=["compose"], goals=goals
        )
        assert figure.notes[0] == (
            "The goal of compose is not known yet: teacher-compose is not evaluated."
        )

    def test_a_resumed_log_counts_its_last_lines(self, study: Path) -> None:
        lines = [{"update": at, "images": at, "loss": 9.0} for at in (1, 2, 3)]
        lines += [{"update": at, "images": at, "loss": 1.0} for at in (2, 3, 4)]
        write_lines(study / "stages/nft/log.jsonl", lines)
        (stage,) = read_run(study).seeds("nft")
        assert [one["loss"] for one in stage.log] == [9, 1, 1, 1]

    def test_rows_without_anything_are_named(self, study: Path) -> None:
        figure = drawn(read_run(study), kind="interference", rows=["grpo-mix", "nft"])
        assert len(figure.panels) == 3
        assert figure.notes[-1] == "Missing (nothing recorded yet): nft."

    def test_many_lines_get_a_legend(self, study: Path) -> None:
        rows = [row for row in read_run(study).rows if row != "base"]
        figure = drawn(read_run(study), kind="log", rows=rows, keys=["loss"])
        assert list(figure.legend) == rows
        assert ">nft<" not in figure.panels[0]
        few = drawn(read_run(study), kind="log", rows=["nft"], keys=["loss"])
        assert few.legend == {}
        assert ">nft<" in few.panels[0]

    def test_an_axis_that_does_not_begin_at_zero_is_said(self, study: Path) -> None:
        keys = FIGURES[0] | {"metrics": ["compose", "quality"]}
        figure = drawn(read_run(study), **keys)
        assert "The axis of quality does not begin at zero." in figure.notes
        assert "The vertical line is at base." in figure.notes

    def test_what_is_written_in_a_plot_is_text(self) -> None:
        text = svg(
            lambda axes: axes.set_title('$a$ <b> & "c"'), size=Size(200, 100), key="k", label="<l>"
        )
        assert '$a$ &lt;b&gt; &amp; "c"</text>' in text
        assert 'aria-label="&lt;l&gt;"' in text
        assert "xmlns" not in text
        assert "font-family" not in text

    def test_a_line_of_one_point_is_seen(self, study: Path) -> None:
        write_lines(study / "stages/nft/log.jsonl", [{"update": 1, "images": 8, "loss": 0.5}])
        run = read_run(study)
        marks = {
            row: re.findall(
                f"<use [^>]*{row_looks(run)[row].color}",
                drawn(run, kind="log", rows=[row], keys=["loss"]).panels[0],
            )
            for row in ("nft", "opd-sft")
        }
        assert len(marks["nft"]) == 1
        assert marks["opd-sft"] == []


def test_large_pictures_are_made_smaller(study: Path) -> None:
    path = study / "stages/eval.nft/panel/00.png"
    pixels = np.random.default_rng(0).integers(0, 256, size=(512, 768, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    run = read_run(study)
    large = shown(run, path, PICTURE)
    assert large is not None
    assert (large.width, large.height, large.hard) == (256, 171, False)
    assert large.uri.startswith("data:image/webp;base64,")
    assert len(large.uri) < 64 * 1024
    small = shown(run, path.with_name("01.png"), PICTURE)
    assert small is not None
    assert (small.width, small.height, small.hard) == (32, 32, True)
    content = base64.b64decode(small.uri.removeprefix("data:image/png;base64,"))
    assert content == path.with_name("01.png").read_bytes()
