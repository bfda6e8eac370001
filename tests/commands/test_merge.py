"""`flowopd merge` from outside: the folder, the table, the sentences."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fakes import FakeConfig, FakeModel, fake_plugins
from flowopd.cli import app
from flowopd.policy.adapter_files import AdapterFiles, read_adapter
from flowopd.policy.bank import AdapterBank, Role

__all__ = ["fake_plugins"]

pytestmark = pytest.mark.usefixtures("fake_plugins")

QUERY = "to_q"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def save(folder: Path, seed: int, *, base: int = 0, guidance: float = 3.0, rank: int = 2) -> Path:
    """An adapter of the fake model, trained (it says) with that guidance."""
    model = FakeConfig(seed=base).open()
    bank = AdapterBank(model.transformer, base_name="fake", fingerprint=model.fingerprint)
    bank.create("it", Role.STUDENT, rank=rank, alpha=4, targets=[QUERY])
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(tensor.shape, generator=generator)
        for key, tensor in bank.state_dict("it").items()
    }
    bank.load_state_dict("it", state)
    bank.save("it", folder, metadata={"guidance": guidance}, lora_prefix=None)
    return folder


def delta(files: AdapterFiles) -> torch.Tensor:
    A, B = (files.tensors[f"{QUERY}.lora_{half}.weight"] for half in "AB")
    return files.config.scaling_of(QUERY) * B @ A


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / name, seed) for seed, name in enumerate("abc")]


def test_the_weighted_sum_with_its_record(tmp_path: Path, adapters: list[Path]) -> None:
    out = tmp_path / "out"
    options = ("--weights", "0.5,0.3,0.2", "--method", "exact", "--out", out)
    result = call(*adapters, *options, "--model", "fake")
    assert result.exit_code == 0, result.output
    parts = [read_adapter(adapter) for adapter in adapters]
    wanted = 0.5 * delta(parts[0]) + 0.3 * delta(parts[1]) + 0.2 * delta(parts[2])
    merged = read_adapter(out)
    torch.testing.assert_close(delta(merged), wanted, rtol=1e-5, atol=1e-6)
    assert (merged.notes["guidance"], merged.notes["base"]) == (3.0, "fake")
    record = json.loads((out / "merge.json").read_text())
    assert [parent["name"] for parent in record["parents"]] == ["a", "b", "c"]
    assert record["error"] < 1e-6
    assert "all 1 layers (0.0 MiB)" in result.stdout
    assert result.stderr == ""


def test_weights_are_equal_unless_given(tmp_path: Path, adapters: list[Path]) -> None:
    call(*adapters, "--method", "exact", "--out", tmp_path / "out")
    parts = [delta(read_adapter(adapter)) for adapter in adapters]
    found = delta(read_adapter(tmp_path / "out"))
    torch.testing.assert_close(found, sum(parts) / 3, rtol=1e-5, atol=1e-6)


def test_the_table_names_the_worst_layer(tmp_path: Path, adapters: list[Path]) -> None:
    result = call(*adapters, "--method", "svd", "--rank", 1, "--out", tmp_path / "out")
    error = json.loads((tmp_path / "out" / "merge.json").read_text())["error"]
    row = next(line for line in result.stdout.splitlines() if QUERY in line)
    assert f"{error:.2%}" in row
    assert error > 0.01


def test_every_option_changes_the_result(tmp_path: Path, adapters: list[Path]) -> None:
    runs: dict[str, tuple[Any, ...]] = {
        "svd": (),
        "rank": ("--rank", 1),
        "exact": ("--method", "exact"),
        "factors": ("--method", "factors"),
        "ties": ("--method", "ties"),
        "dense": ("--method", "ties", "--density", 0.9),
        "dare": ("--method", "dare"),
        "seed": ("--method", "dare", "--seed", 1),
        "sum": ("--method", "dare", "--seed", 1, "--any-sum", "--weights", "1,1,1"),
    }
    found = []
    for name, options in runs.items():
        result = call(*adapters, *options, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        found.append(read_adapter(tmp_path / name).sha256)
    assert len(set(found)) == len(runs)


def test_warnings_go_to_stderr(tmp_path: Path, adapters: list[Path]) -> None:
    other = save(tmp_path / "other", 9, guidance=1.0)
    result = call(adapters[0], other, "--method", "factors", "--out", tmp_path / "out")
    assert "warning: factors averages the A's and the B's apart" in result.stderr
    assert "different guidance: 3.0 (a), 1.0 (other)" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--weights", "0.5,0.3,0.3"), "sum to 1.1, not to 1"),
        (("--weights", "0.5,0.5"), "3 adapters and 2 weights"),
        (("--weights", "0.5;0.5"), "should be numbers with commas between them"),
        (("--weights", "1,1,nan"), "each should be a finite number"),
        (("--rank", "0"), "The key 'rank' is 0"),
        (("--method", "exact", "--rank", "3"), "'rank' is 3; it goes with svd"),
        (("--density", "0.2"), "'density' is 0.2; it goes with ties and dare"),
        (("--method", "mean"), "The key 'method' is 'mean'"),
        (("--model", "fak"), "Did you mean 'fake'?"),
    ],
)
def test_bad_input(
    tmp_path: Path, adapters: list[Path], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(call(*adapters, *options, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    assert "No adapter at none" in refusal(call("none", "--out", tmp_path / "out"))


def test_the_output_may_not_be_a_parent(adapters: list[Path]) -> None:
    before = read_adapter(adapters[1]).sha256
    assert "would be replaced" in refusal(call(*adapters, "--out", adapters[1]))
    assert read_adapter(adapters[1]).sha256 == before


def test_adapters_of_another_model(
    tmp_path: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = save(tmp_path / "stranger", 7, base=1)
    assert "different bases" in refusal(call(*adapters, stranger, "--out", tmp_path / "out"))
    monkeypatch.setattr(FakeModel, "__init__", lambda *_: pytest.fail("weights were loaded"))
    result = call(stranger, "--model", "fake", "--out", tmp_path / "out")
    assert "trained on another base" in refusal(result)
    assert not (tmp_path / "out").exists()
