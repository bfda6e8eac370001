"""The page of a study, finished or not: its numbers, its sentences, and that it needs nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_page import Page
from report_study import FIGURES, ROWS, write_json, write_study
from typer.testing import CliRunner

from flowopd.cli import app
from flowopd.errors import FlowOPDError
from flowopd.reporting.report import write_report

FEW = [figure | {"metrics": ["compose", "quality"]} for figure in FIGURES[:1]]
FEW += [FIGURES[1] | {"metrics": ["compose"], "goals": {"compose": FIGURES[1]["goals"]["compose"]}}]
FEW += [FIGURES[2] | {"metrics": ["text"]}, FIGURES[3], FIGURES[4] | {"keys": ["loss"]}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study's folder, with its report. Read it, never write to it."""
    folder = write_study(tmp_path_factory.mktemp("finished") / "run", figures=FEW)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The same study without figures."""
    return write_study(tmp_path / "run", figures=[])


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


class TestFinished:
    def test_the_numbers_are_those_of_the_results(self, finished: Path, page: Page) -> None:
        names = ("compose", "text", "quality", "preference", "average", "diversity")
        for row in results(finished)["rows"]:
            cells = page.row(0, row["name"])
            for name, cell in zip(names, cells[1:], strict=False):
                metric = row["metrics"][name]
                shown = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**metric)
                seeds = [seed["metrics"][name] for seed in row["seeds"]]
                several = [f"{mean:.3f}" for mean in seeds] if len(seeds) > 1 else []
                assert cell.split() == shown.split() + several
            costs = [row[key] for key in ("images", "images_total", "seconds", "seconds_total")]
            assert cells[-4:] == [f"{cost:,.0f}" for cost in costs]

    def test_columns_and_rows_stand_in_the_studys_order(self, page: Page) -> None:
        assert page.tables[0][1][1:7] == [
            "compose",
            "text",
            "quality",
            "preference",
            "average",
            "diversity",
        ]
        assert [row[0].split()[0] for row in page.tables[0][2:]] == list(ROWS)

    def test_soft_scores_and_parts_have_their_own_table(self, page: Page) -> None:
        assert page.tables[1][0][1:] == [
            "compose_soft",
            "compose/counting",
            "compose/colors",
            "compose/position",
        ]
        assert "compose_soft" not in page.tables[0][1]

    def test_the_best_of_the_rows_that_take_part_is_bold(self, page: Page) -> None:
        # teacher-compose (0.871) and teacher-quality (4.655) take no part.
        assert page.bold[:7] == [
            ("base", "0.219"),
            ("grpo-mix", "0.402"),
            *(("opd-merge", best) for best in ("0.868", "0.934", "4.512", "0.757")),
            ("opd-merge", "0.968"),  # of the second table
        ]

    def test_a_row_says_how_many_seeds_it_has(self, page: Page) -> None:
        assert page.row(0, "opd-merge")[0] == "opd-merge 3 seeds"
        assert page.row(0, "nft")[0] == "nft"

    def test_the_summary_says_what_and_on_what(self, page: Page) -> None:
        assert (
            "The study world-short has 12 rows, evaluated under the protocol world-v1" in page.text
        )
        assert "512 for compose, text, quality, preference, diversity" in page.text
        assert "Model: world (0123456789ab), evaluated on cpu." in page.text
        assert "flowopd 0.1.0, torch 2.13.0, python 3.11.7" in page.text
        assert "not done" not in page.text

    def test_a_goal_is_said_in_words(self, page: Page) -> None:
        # 0.95 of teacher-compose's 0.871
        assert "The goal of compose, 95% of teacher-compose, is 0.827: reached by" in page.text

    def test_every_row_has_its_pictures(self, page: Page) -> None:
        pictures = [ref for ref in page.references if ref.startswith("data:image/png;base64,")]
        panels, sheets = len(ROWS) * 8, (len(ROWS) - 1) * 3
        assert len(pictures) == panels + sheets
        assert page.html.count('class="hard"') == panels + sheets

    def test_every_stage_has_its_settings_and_hashes(self, page: Page) -> None:
        assert "name: grpo" in page.text
        assert "merge, stands on teacher-compose, teacher-text" in page.text
        assert f"{'ab' * 32} adapter/adapter_model.safetensors" in page.text
        assert b"opd-merge.s2".hex() in page.text  # its identity

    def test_nothing_comes_from_outside(self, page: Page) -> None:
        assert {"script", "link", "iframe", "object", "base"}.isdisjoint(page.tags)
        assert all(ref.startswith(("data:image/", "#")) for ref in page.references)
        assert not re.search(r"://|@import|url\((?!#)", page.html)
        assert "default-src 'none'" in page.html

    def test_ids_are_unique_and_all_references_lead_somewhere(self, page: Page) -> None:
        assert len(page.ids) == len(set(page.ids))
        inside = {ref[1:] for ref in page.references if ref.startswith("#")}
        inside |= set(re.findall(r"url\(#([^)]*)\)", page.html))
        assert inside
        assert inside <= set(page.ids)

    def test_figures_are_drawn_in_the_pages_text(self, page: Page) -> None:
        assert page.tags.count("figure") == len(FEW) + 3 * (len(ROWS) - 1)
        assert page.html.count('class="plot"') == 2 + 1 + 1 + 3 + 1
        assert "compose and text" in page.texts  # the title of a panel
        assert "95% of teacher-compose" in page.texts  # beside its line
        assert "Figure 1. The seesaw, and its cure." in page.texts
        assert "Figure 2. What does it cost?" in page.texts

    def test_the_report_is_the_same_again(self, finished: Path, page: Page) -> None:
        assert write_report(finished).read_text(encoding="utf-8") == page.html

    def test_drawing_leaves_nothing_behind(self, finished: Path) -> None:
        code = (
            "import sys, pathlib, matplotlib\n"
            "names = set(matplotlib.rcParams) - {'backend'}\n"
            "settings = lambda: {name: matplotlib.rcParams[name] for name in names}\n"
            "before = settings()\n"
            "from flowopd.reporting.report import write_report\n"
            "write_report(pathlib.Path(sys.argv[1]))\n"
            "assert settings() == before\n"
            "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
        )
        copy = finished.parent / "again"
        shutil.copytree(finished, copy)
        environment = os.environ | {"PYTHONHASHSEED": "7"}
        subprocess.run([sys.executable, "-c", code, str(copy)], check=True, env=environment)
        again, before = (folder / "report.html" for folder in (copy, finished))
        assert again.read_bytes() == before.read_bytes()


class TestUnfinished:
    def test_a_study_that_has_only_begun(self, tmp_path: Path) -> None:
        folder = write_study(tmp_path / "run", figures=FEW)
        for name in ("stages", "results.json"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        page = read(folder)
        assert "None of the 32 stages has begun." in page.text
        assert page.row(0, "opd-merge") == ["opd-merge not evaluated yet", *["–"] * 9]
        assert page.text.count("Nothing to draw yet.") == len(FEW)
        assert "There are no panels of pictures yet." in page.text
        assert "No training stage has been probed yet." in page.text

    def test_missing_stages_are_said(self, bare: Path) -> None:
        for name in ("opd-merge.s2", "eval.opd-merge.s2", "eval.nft"):
            shutil.rmtree(bare / "stages" / name)
        (bare / "stages/opd-merge.s1/done.json").unlink()
        log = bare / "stages/opd-merge.s1/log.jsonl"
        log.write_text("\n".join(log.read_text().split("\n")[:40]) + '\n{"update": 41, "im')
        found = results(bare)
        found["rows"] = [row for row in found["rows"] if row["name"] != "nft"]
        next(row for row in found["rows"] if row["name"] == "opd-merge")["seeds"].pop()
        write_json(bare / "results.json", found)
        page = read(bare)
        assert "4 of 32 stages are not done." in page.text
        assert "Under way: opd-merge.s1 (at update 40 of 100)." in page.text
        assert "Not begun: opd-merge.s2, eval.opd-merge.s2, eval.nft." in page.text
        assert "has 12 rows, of which 11 are evaluated" in page.text
        assert page.row(0, "nft")[0] == "nft not evaluated yet"
        assert page.row(0, "opd-merge")[0] == "opd-merge 2 of 3 seeds"
        assert "cannot be read" not in page.text  # a line that is being written is no fault

    def test_broken_files_are_left_out_and_said(self, bare: Path) -> None:
        (bare / "results.json").write_text("{")
        log = bare / "stages/nft/log.jsonl"
        log.write_text("nonsense\n" + log.read_text())
        (bare / "stages/nft/stage.json").write_text("[]")
        (bare / "stages/eval.nft/panel/03.png").write_text("no picture")
        page = read(bare)
        assert "results.json is no valid JSON and is left out." in page.text
        assert "stages/nft/log.jsonl has lines that cannot be read (1)" in page.text
        assert "stages/nft/stage.json holds something else than it should" in page.text
        assert "stages/eval.nft/panel/03.png is no picture that can be opened" in page.text
        assert str(bare) not in page.html

    def test_a_picture_outside_the_stage_is_not_shown(self, bare: Path) -> None:
        secret = bare / "stages/eval.base/panel/00.png"
        entry = {"prompt": "a", "seed": 0, "file": "../eval.base/panel/00.png"}
        assert (bare / "stages/eval.nft" / entry["file"]).resolve() == secret
        write_json(bare / "stages/eval.nft/panel.json", [entry])
        page = read(bare)
        assert page.html.count('<span class="absent"') == len(ROWS) - 1 + 8 + 1

    def test_a_folder_without_a_study_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FlowOPDError, match=r"is no folder of a study: there is no study\.yaml"):
            write_report(tmp_path)
        outcome = CliRunner().invoke(app, ["report", str(tmp_path)])
        assert outcome.exit_code == 2
        assert not (tmp_path / "report.html").exists()


class TestNames:
    EVIL = '<script>alert(1)</script><img src=x onerror="x()">$x$'

    def test_names_are_text_wherever_they_stand(self, bare: Path) -> None:
        study = yaml.safe_load((bare / "study.yaml").read_text())
        study["name"] = study["report"]["title"] = study["report"]["intro"] = self.EVIL
        study["evaluation"]["rows"] = ["base", self.EVIL]
        study["report"]["best_of"] = None
        bars = {"kind": "bars", "rows": ["base", self.EVIL], "metrics": [self.EVIL]}
        study["report"]["figures"] = [bars | {"title": self.EVIL, "caption": self.EVIL}]
        (bare / "study.yaml").write_text(yaml.safe_dump(study))
        found = results(bare)
        found["rows"] = found["rows"][:2]
        found["rows"][1]["name"] = self.EVIL
        found["protocol"]["name"] = self.EVIL
        for row in found["rows"]:
            row["metrics"][self.EVIL] = row["metrics"]["compose"]
        write_json(bare / "results.json", found)
        entries = json.loads((bare / "stages/eval.base/panel.json").read_text())
        write_json(bare / "stages/eval.base/panel.json", [entries[0] | {"prompt": self.EVIL}])
        page = read(bare)
        assert "script" not in page.tags
        assert page.handlers == []
        assert page.texts.count(self.EVIL) >= 8  # in titles, tables, panels, and in the figure
        assert all(ref.startswith(("data:image/", "#")) for ref in page.references)


def test_rows_that_print_the_same_share_the_best(bare: Path) -> None:
    found = results(bare)
    by_name = {row["name"]: row["metrics"]["compose"] for row in found["rows"]}
    by_name["opd-merge"]["mean"], by_name["opd-sft"]["mean"] = 0.86812, 0.86848
    write_json(bare / "results.json", found)
    best = [row for row, text in read(bare).bold if text == "0.868"]
    assert best[:2] == ["opd-sft", "opd-merge"]


def test_values_that_could_not_be_read_are_counted(bare: Path) -> None:
    found = results(bare)
    found["rows"][0]["metrics"]["text"]["missing"] = 3
    found["rows"][0]["metrics"]["quality"] = {"mean": None, "low": None, "high": None, "n": 0}
    found["rows"][0]["metrics"]["preference"] |= {"low": None, "high": None}
    write_json(bare / "results.json", found)
    cells = read(bare).row(0, "base")
    assert cells[2] == "0.678 [0.641, 0.715] 3 missing"
    assert cells[3:5] == ["–", "0.290"]


def test_the_command_prints_where_the_report_is(bare: Path) -> None:
    outcome = CliRunner().invoke(app, ["report", str(bare)])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.strip() == str(bare / "report.html")
