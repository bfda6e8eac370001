"""Checkpoints are whole or not used: torn, damaged, of another recipe, killed while made."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.training import checkpoint
from flowopd.training.checkpoint import RECORD, TENSORS, Checkpoints, Saved


def make(folder: Path, keep: int = 2, recipe: str = "mine") -> Checkpoints:
    return Checkpoints(folder / "checkpoints", recipe=recipe, keep=keep)


def tensors(update: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(update)
    return {
        "student": {"a.b/c": torch.randn(3, 4, generator=generator), "d": torch.tensor(update)},
        "optimizer": {"0.step": torch.tensor(float(update))},
        "random": {"torch": torch.get_rng_state()},
        "method": {},
    }


def save(checkpoints: Checkpoints, *updates: int) -> list[Path]:
    return [checkpoints.save(n, tensors(n), {"images": 10 * n}) for n in updates]


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def update_of(saved: Saved | None) -> int | None:
    return None if saved is None else int(saved.record["update"])


class TestSaving:
    def test_what_was_saved_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        record = {
            "seconds": 0.1 + 0.2,
            "batches": {"cursors": {"z": 3, "a": 1}, "debts": {"z": -1 / 3}},
            "none": None,
        }
        make(tmp_path).save(7, tensors(7), record)
        saved = make(tmp_path).latest()
        assert saved is not None
        for part, values in tensors(7).items():
            for key, tensor in values.items():
                found = saved.tensors[part][key]
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor)
        assert saved.record == saved.record | record
        assert list(saved.record["batches"]["cursors"]) == ["z", "a"]
        assert saved.record["update"] == 7

    def test_half_precision_views_and_shared_memory(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        kept = {"bf16": base.bfloat16(), "view": base.T, "row": base[1], "leaf": base}
        make(tmp_path).save(1, {"student": kept}, {})
        saved = make(tmp_path).latest()
        assert saved is not None
        for key, tensor in kept.items():
            assert torch.equal(saved.tensors["student"][key], tensor)
            assert saved.tensors["student"][key].dtype == tensor.dtype

    def test_a_checkpoint_does_not_follow_what_it_was_made_from(self, tmp_path: Path) -> None:
        parameter = torch.nn.Parameter(torch.ones(2))
        make(tmp_path).save(1, {"student": {"p": parameter}}, {})
        with torch.no_grad():
            parameter.zero_()
        saved = make(tmp_path).latest()
        assert saved is not None
        assert saved.tensors["student"]["p"].tolist() == [1, 1]

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_last_n_are_kept(self, tmp_path: Path, keep: int) -> None:
        checkpoints = make(tmp_path, keep)
        save(checkpoints, 0, 5, 10, 15)
        assert names(checkpoints) == [f"update-{n:08d}" for n in (0, 5, 10, 15)][-keep:]

    def test_there_is_none_at_the_beginning(self, tmp_path: Path) -> None:
        assert make(tmp_path).latest() is None
        (tmp_path / "checkpoints").mkdir()
        assert make(tmp_path).latest() is None

    def test_a_whole_one_of_the_same_update_is_left_as_it_is(self, tmp_path: Path) -> None:
        """The one at the end of a run may be there already: it is never taken away, even for a
        moment."""
        checkpoints = make(tmp_path, keep=1)
        (path,) = save(checkpoints, 5)
        before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
        save(checkpoints, 5)
        assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before

    def test_a_damaged_one_of_the_same_update_is_replaced(self, tmp_path: Path) -> None:
        checkpoints = make(tmp_path)
        (path,) = save(checkpoints, 5)
        (path / TENSORS).write_bytes(b"")
        save(checkpoints, 5)
        assert update_of(checkpoints.latest()) == 5

    def test_folders_of_ones_own_are_neither_read_nor_removed(self, tmp_path: Path) -> None:
        checkpoints = make(tmp_path, keep=1)
        (path,) = save(checkpoints, 5)
        shutil.copytree(path, path.with_name("update-00000005.bak"))
        shutil.copytree(path, path.with_name("update-mine"))
        save(checkpoints, 10, 15)
        kept = ["update-00000005.bak", "update-00000015", "update-mine"]
        assert names(checkpoints) == kept
        assert update_of(checkpoints.latest()) == 15

    def test_others_may_read_what_the_umask_lets_them(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            (path,) = save(make(tmp_path), 1)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o750


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [
    _truncate,
    _flip,
    _empty,
    _zeros,
    _longer,
    Path.unlink,
    _folder,
]


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    @pytest.mark.parametrize("file", [TENSORS, RECORD])
    def test_a_damaged_one_is_named_and_the_one_before_is_used(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        damage: Callable[[Path], None],
        file: str,
    ) -> None:
        checkpoints = make(tmp_path)
        before, last = save(checkpoints, 5, 10)
        damage(last / file)
        saved = checkpoints.latest()
        assert update_of(saved) == 5
        assert saved is not None
        assert torch.equal(saved.tensors["student"]["a.b/c"], tensors(5)["student"]["a.b/c"])
        warning = capsys.readouterr().err
        assert f"warning: the checkpoint {last} is " in warning
        assert file in warning
        assert str(before) not in warning

    @pytest.mark.parametrize(
        "content", ["[]", "3", "null", '"x"', "{}", '{"state": {}}', '{"state": 1, "sha256": 2}']
    )
    def test_json_of_another_shape(self, tmp_path: Path, content: str) -> None:
        checkpoints = make(tmp_path)
        _, last = save(checkpoints, 5, 10)
        (last / RECORD).write_text(content)
        assert update_of(checkpoints.latest()) == 5

    def test_a_number_changed_by_hand(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoints = make(tmp_path)
        _, last = save(checkpoints, 5, 10)
        text = (last / RECORD).read_text()
        assert '"images": 100' in text
        (last / RECORD).write_text(text.replace('"images": 100', '"images": 101'))
        assert update_of(checkpoints.latest()) == 5
        assert "damaged (state.json is not what was written)" in capsys.readouterr().err

    def test_the_tensors_of_another_update(self, tmp_path: Path) -> None:
        """Each file is whole; together they are not what was written."""
        checkpoints = make(tmp_path)
        before, last = save(checkpoints, 5, 10)
        shutil.copy(before / TENSORS, last / TENSORS)
        assert update_of(checkpoints.latest()) == 5

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        checkpoints = make(tmp_path)
        save(checkpoints, 5)
        (checkpoints.folder / "update-00000010").mkdir()
        assert update_of(checkpoints.latest()) == 5

    def test_none_is_whole(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        checkpoints = make(tmp_path)
        for path in save(checkpoints, 5, 10):
            _flip(path / TENSORS)
        assert checkpoints.latest() is None
        assert capsys.readouterr().err.count("warning: the checkpoint") == 2

    @pytest.mark.parametrize("keep", [1, 2])
    def test_a_damaged_newer_one_does_not_push_out_what_is_saved_next(
        self, tmp_path: Path, keep: int
    ) -> None:
        checkpoints = make(tmp_path, keep)
        last = save(checkpoints, 5, 10)[-1]
        _flip(last / TENSORS)
        checkpoints.latest()
        save(checkpoints, 6)
        assert update_of(checkpoints.latest()) == 6
        assert "update-00000010" not in names(checkpoints)


class TestRecipe:
    def test_of_another_recipe_is_refused(self, tmp_path: Path) -> None:
        save(make(tmp_path), 5)
        with pytest.raises(FlowOPDError, match=r"update-00000005 is of another recipe .*output"):
            make(tmp_path, recipe="another").latest()

    def test_it_is_not_taken_for_damage_although_an_older_one_fits(self, tmp_path: Path) -> None:
        save(make(tmp_path), 5)
        save(make(tmp_path, recipe="another"), 10)
        with pytest.raises(FlowOPDError, match="update-00000010 is of another recipe"):
            make(tmp_path).latest()

    def test_the_record_cannot_change_it(self, tmp_path: Path) -> None:
        make(tmp_path).save(5, {}, {"recipe": "another", "update": 9, "tensors": "x"})
        assert update_of(make(tmp_path).latest()) == 5

    def test_without_any_tensor_it_is_whole_too(self, tmp_path: Path) -> None:
        make(tmp_path).save(5, {"student": {}}, {})
        saved = make(tmp_path).latest()
        assert saved is not None
        assert saved.tensors == {}


class KilledError(BaseException):
    """The end of the process: nobody catches it, and nobody tidies up."""


def _die(*args: object, **keys: object) -> None:
    raise KilledError


def _torn_tensors(file: Path, *tensors: object) -> None:
    file.write_bytes(b"half")
    raise KilledError


def _torn_record(path: Path, text: str, **keys: object) -> None:
    path.write_bytes(text.encode()[:20])
    raise KilledError


def _torn_tree(path: Path, **keys: object) -> None:
    (path / RECORD).unlink()
    raise KilledError


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "in the tensors": lambda patch: patch.setattr(checkpoint, "write_tensors", _torn_tensors),
    "before the record": lambda patch: patch.setattr(checkpoint, "_seal", _die),
    "in the record": lambda patch: patch.setattr(Path, "write_text", _torn_record),
    "before the rename": lambda patch: patch.setattr(Path, "rename", _die),
}


class TestKilled:
    def test_what_a_killed_save_left_is_not_read_and_is_swept(self, tmp_path: Path) -> None:
        checkpoints = make(tmp_path)
        (path,) = save(checkpoints, 5)
        for name in (".update-00000010", ".update-00000010.x1y2"):
            shutil.copytree(path, path.with_name(name))
        assert update_of(checkpoints.latest()) == 5
        save(checkpoints, 10)
        assert names(checkpoints) == ["update-00000005", "update-00000010"]

    @pytest.mark.parametrize("place", PLACES)
    def test_a_kill_at_any_place_leaves_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        checkpoints = make(tmp_path)
        save(checkpoints, 5)
        with monkeypatch.context() as patched:
            PLACES[place](patched)
            with pytest.raises(KilledError):
                save(checkpoints, 10)
        assert any(name.startswith(".") for name in names(checkpoints))
        after = make(tmp_path)
        assert update_of(after.latest()) == 5
        save(after, 15)
        assert names(after) == ["update-00000005", "update-00000015"]

    @pytest.mark.parametrize("keep", [1, 2])
    def test_a_kill_while_old_ones_are_dropped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
    ) -> None:
        checkpoints = make(tmp_path, keep)
        save(checkpoints, *range(keep))
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint.shutil, "rmtree", _torn_tree)
            with pytest.raises(KilledError):
                save(checkpoints, 10)
        assert update_of(make(tmp_path, keep).latest()) == 10
        save(make(tmp_path, keep), 11)
        assert "update-00000000" not in names(checkpoints)

    def test_a_full_disk_is_a_sentence_and_the_one_before_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoints = make(tmp_path)
        save(checkpoints, 5)

        def full(file: Path, *tensors: object) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(
            FlowOPDError, match=r"update-00000010 cannot be written: .*No space left"
        ):
            save(checkpoints, 10)
        assert names(checkpoints) == ["update-00000005"]
        assert update_of(checkpoints.latest()) == 5

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").write_text("in the way")
        with pytest.raises(FlowOPDError, match="cannot be written"):
            save(make(tmp_path), 5)


def test_the_seal_is_the_sha_256_of_the_record(tmp_path: Path) -> None:
    (path,) = save(make(tmp_path), 5)
    sealed = json.loads((path / RECORD).read_text())
    text = json.dumps(sealed["state"], sort_keys=True)
    assert sealed["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert sealed["state"]["tensors"] == hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()
