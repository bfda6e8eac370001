"""The check of plans, on a CPU: it plans, counts a real update, and compares."""

import json
from pathlib import Path

import pytest

import plan_check


def test_a_plan_is_near_to_what_an_update_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_check, "CASES", plan_check.CASES[2:3])
    plan_check.main(["--device", "cpu", "--steps", "3", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["planned"] == pytest.approx(row["measured"], rel=plan_check.WITHIN)
    assert row["reserved"] is None
    assert "Only a GPU tells the whole truth" in capsys.readouterr().out


def test_the_true_size_needs_a_gpu() -> None:
    with pytest.raises(SystemExit, match="needs a GPU"):
        plan_check.main(["--size", "sd35m", "--device", "cpu"])
