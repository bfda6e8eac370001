"""The record: whole lines, cut back to the checkpoint; trackers by name."""

import json
from pathlib import Path

import pytest

from flowopd.errors import FlowOPDError
from flowopd.training.record import JsonLines, Trackers, check_trackers, read_lines, rounded


def lines(path: Path, *updates: int) -> Path:
    path.write_text("".join(json.dumps({"update": n}) + "\n" for n in updates))
    return path


def updates(path: Path) -> list[int]:
    return [line["update"] for line in read_lines(path)]


class TestJsonLines:
    def test_grow_by_a_line_that_is_there_at_once(self, tmp_path: Path) -> None:
        log = JsonLines(tmp_path / "run" / "log.jsonl", 0)
        log.add({"update": 1, "loss": 0.5, "scores": {"a": 1}})
        log.add({"update": 2})
        expected = [{"update": 1, "loss": 0.5, "scores": {"a": 1}}, {"update": 2}]
        assert read_lines(log.path) == expected
        assert log.path.read_text().count("\n") == 2

    @pytest.mark.parametrize(
        ("update", "including", "kept"),
        [(3, True, [1, 2, 3]), (3, False, [1, 2]), (9, True, [1, 2, 3, 4, 5]), (0, True, [])],
    )
    def test_what_came_after_the_checkpoint_is_cut_off(
        self, tmp_path: Path, update: int, including: bool, kept: list[int]
    ) -> None:
        """It will be done again."""
        path = lines(tmp_path / "log.jsonl", 1, 2, 3, 4, 5)
        JsonLines(path, update, including=including)
        assert updates(path) == kept

    def test_the_line_before_training_goes_where_there_is_no_checkpoint(
        self, tmp_path: Path
    ) -> None:
        """Killed after the first probe and before the first save: it is drawn again."""
        path = lines(tmp_path / "probe.jsonl", 0)
        JsonLines(path, 0, including=False)
        assert updates(path) == []
        lines(path, 0)
        JsonLines(path, 0, including=True)
        assert updates(path) == [0]

    @pytest.mark.parametrize("cut", range(1, 13))
    def test_a_last_line_that_a_kill_cut_off_is_left_out(self, tmp_path: Path, cut: int) -> None:
        path = lines(tmp_path / "log.jsonl", 1, 2)
        path.write_text(path.read_text()[:-cut])
        assert updates(path) == [1]
        JsonLines(path, 5).add({"update": 2})
        assert updates(path) == [1, 2]

    @pytest.mark.parametrize(
        "damage",
        [
            b"\0\0\0",
            b"\xff\xfe{",
            b"[1]",
            b"3",
            b"{}",
            b'{"loss": 1}',
            b'{"update": "2"}',
            b'{"update": true}',
            b'{"update": null}',
            b"[" * 100_000,
        ],
    )
    def test_damaged_lines_are_left_out_with_one_warning(
        self, tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = lines(tmp_path / "log.jsonl", 1, 2)
        first, second = path.read_bytes().splitlines()
        path.write_bytes(b"\n".join([first, damage, damage, second, b""]))
        JsonLines(path, 5)
        said = f"warning: 2 damaged lines are left out of {path}.\n"
        assert capsys.readouterr().err == said
        assert updates(path) == [1, 2]
        assert capsys.readouterr().err == ""

    def test_there_may_be_no_file_or_an_empty_one(self, tmp_path: Path) -> None:
        assert read_lines(tmp_path / "none.jsonl") == []
        (tmp_path / "empty.jsonl").write_text("")
        assert read_lines(tmp_path / "empty.jsonl") == []

    def test_numbers_come_back_as_they_were(self, tmp_path: Path) -> None:
        line = {"update": 1, "seconds": 0.1 + 0.2, "name": "ü"}
        path = tmp_path / "log.jsonl"
        JsonLines(path, 0).add(line)
        JsonLines(path, 1)
        assert read_lines(path) == [line]


class TestRounded:
    def test_six_digits_that_count(self) -> None:
        found = rounded({"a": 1.23456789, "b": 1.23456789e-9, "c": 123456789.0, "d": -0.5})
        assert found == {"a": 1.23457, "b": 1.23457e-9, "c": 123457000.0, "d": -0.5}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_is_left_out_of_the_line(self, value: float) -> None:
        """`NaN` is no JSON, and would break whoever else reads the file."""
        assert rounded({"loss": value, "lr": 0.1}) == {"lr": 0.1}


class TestTrackers:
    def test_none_needs_nothing(self, tmp_path: Path) -> None:
        trackers = Trackers([], tmp_path, {})
        trackers.log({"loss": 1.0}, 1)
        trackers.close()
        check_trackers([])
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_there_is_not(self) -> None:
        with pytest.raises(FlowOPDError, match=r"no tracker 'tensorbord'; .*tensorboard.*wandb"):
            check_trackers(["tensorbord"])

    def test_one_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from accelerate import tracking

        monkeypatch.setattr(tracking, "get_available_trackers", list)
        with pytest.raises(FlowOPDError, match="'wandb' is not installed: pip install wandb"):
            check_trackers(["wandb"])

    def test_tensorboard_gets_the_numbers_and_the_settings(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = {"updates": 3, "batch": {"prompts": 4}, "scorers": ["a"], "start": None}
        trackers = Trackers(["tensorboard"], tmp_path, config)
        for update in (1, 2):
            trackers.log({"loss": 0.5 * update, "task/a/divergence": 1.0}, update)
        trackers.close()
        (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
        events = EventAccumulator(str(folder)).Reload()
        assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
        (settings,) = folder.rglob("hparams.yml")
        assert "batch.prompts: 4" in settings.read_text()
