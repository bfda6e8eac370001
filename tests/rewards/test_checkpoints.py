"""Checkpoints: read without running them, renamed, and refused by name when they do not fit."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.rewards.checkpoints import Conversion, fill, read_folder, read_tensors, under
from tiny_clip import save_json

WHERE = Path("some.pt")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Harmful(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(FlowOPDError, match=r"x\.pt holds more than tensors.*is not run"):
        read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_checkpoint(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FlowOPDError, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_cut_short(name: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / name, {"weight": torch.zeros(1000)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FlowOPDError, match=f"{name} cannot be read"):
        read_tensors(path)


@pytest.mark.parametrize("data", [torch.ones(2), {"a": 1}, {"state_dict": {"a": [1]}}])
def test_a_file_without_tensors_by_name(data: object, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(FlowOPDError, match="should hold tensors by name"):
        read_tensors(tmp_path / "x.pt")


def test_a_state_dict_beside_other_things(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_put_together(whole: str, tmp_path: Path) -> None:
    parts = {"a": "part-1" + Path(whole).suffix, "b": "part-2" + Path(whole).suffix}
    for name, file in parts.items():
        tensors, path = {name: torch.full((2,), float(ord(name)))}, tmp_path / file
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    save_json(tmp_path / f"{whole}.index.json", {"weight_map": parts})
    found = read_folder(tmp_path)
    assert {name: tensor[0].item() for name, tensor in found.items()} == {"a": 97, "b": 98}


def test_an_index_that_names_nothing(tmp_path: Path) -> None:
    save_json(tmp_path / "model.safetensors.index.json", {"weight_map": 3})
    with pytest.raises(FlowOPDError, match="should name the file of each tensor"):
        read_folder(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match=r"has no weights; .* model\.safetensors or"):
        read_folder(tmp_path)


def test_a_network_is_filled_in_float32() -> None:
    half = {"weight": torch.ones(2, 3, dtype=torch.float16), "bias": torch.zeros(2)}
    layer = fill(lambda: nn.Linear(3, 2), half, WHERE)
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(3)).tolist() == [3, 3]
    assert not layer.weight.requires_grad
    assert not layer.training


def test_a_network_is_not_filled_in_part() -> None:
    with pytest.raises(FlowOPDError) as refused:
        fill(lambda: nn.Linear(3, 2), {"weight": torch.ones(2, 3), "gain": torch.ones(1)}, WHERE)
    assert str(refused.value) == (
        "The checkpoint some.pt lacks bias (1) and has the unknown gain (1); it is incomplete or "
        "of another network."
    )
    with pytest.raises(FlowOPDError, match=r"weight of the shape \(3, 2\).* has \(2, 3\)"):
        fill(lambda: nn.Linear(3, 2), {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, WHERE)


def test_many_names_are_counted_and_not_all_shown() -> None:
    tensors = {f"n{i:02}": torch.ones(1) for i in range(20)}
    with pytest.raises(FlowOPDError, match=r"unknown n00, .*, n07 and so on \(20\)"):
        Conversion(tensors, WHERE).done()


def test_a_conversion_moves_turns_and_splits() -> None:
    given = {
        "in": torch.arange(6.0).view(6, 1),
        "proj": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "norm.weight": torch.tensor([5.0]),
        "norm.bias": torch.tensor([6.0]),
        "old.7.x": torch.ones(1),
        "dropped": torch.ones(1),
    }
    conversion = Conversion(given, WHERE)
    assert conversion.count(r"old\.(\d+)\.") == 8
    assert conversion.count(r"none\.(\d+)\.") == 0
    assert conversion.shape("proj") == (2, 2)
    conversion.split("in", ["q", "k", "v"])
    conversion.move("proj", "net.projection", transposed=True)
    conversion.move_both("norm", "net.n")
    conversion.ignore(r"dropped|old\..*")
    found = conversion.done()
    assert {name: tensor.flatten().tolist() for name, tensor in found.items()} == {
        "q": [0, 1],
        "k": [2, 3],
        "v": [4, 5],
        "net.projection": [1, 3, 2, 4],
        "net.n.weight": [5],
        "net.n.bias": [6],
    }
    assert set(under(found, "net.")) == {"projection", "n.weight", "n.bias"}


def test_a_conversion_refuses_a_shape_that_is_not_there() -> None:
    with pytest.raises(FlowOPDError, match=r"some\.pt lacks proj \(1\)"):
        Conversion({}, WHERE).shape("proj")
