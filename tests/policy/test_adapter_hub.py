"""Adapters by their names on the hub: fetched, checked, recorded; never mistaken for a path."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import bank_with_student

from flowopd.config import AdapterPath, Config, load_config
from flowopd.errors import FlowOPDError
from flowopd.hub import HubName, hub_errors, hub_name
from flowopd.policy import adapter_hub
from flowopd.policy.adapter_files import read_adapter
from flowopd.policy.bank import AdapterBank, Role
from hub_cache import COMMIT, HubCache, hub
from tiny_sd3 import tiny_transformer

__all__ = ["hub"]

OTHER = "f" * 40
NAME = "someone/SD3.5M-GenEval"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    bank_with_student().save("student", folder, metadata={}, lora_prefix="transformer")
    return folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("jieliu/SD3.5M-FlowGRPO-Text", HubName("jieliu/SD3.5M-FlowGRPO-Text")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        (f"org/name@{COMMIT}", HubName("org/name", COMMIT)),
        ("name", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("~/name", None),
        ("org/name@", None),
        ("org/name@a b", None),
        ("adapters/mine.safetensors", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name
    if not text.startswith("."):
        assert hub_name(Path(text)) == name


def test_an_adapter_of_the_hub_is_the_one_that_was_put_there(hub: HubCache, saved: Path) -> None:
    snapshot = hub.put(NAME, saved)
    found, local = read_adapter(NAME), read_adapter(saved)
    assert found.source == Path(NAME)
    assert found.folder == snapshot
    assert (found.sha256, found.identity) == (local.sha256, local.identity)
    assert found.origin == {"hub": NAME, "commit": COMMIT}
    assert local.origin == {}
    assert found.tensors.keys() == local.tensors.keys()
    assert all(torch.equal(found.tensors[key], local.tensors[key]) for key in found.tensors)


def test_a_bank_loads_it(hub: HubCache, saved: Path) -> None:
    hub.put(NAME, saved)
    bank = AdapterBank(tiny_transformer(0))
    info = bank.load("teacher", NAME, Role.TEACHER)
    assert info.sha256 == read_adapter(saved).sha256


def test_revisions_are_branches_tags_and_commits(hub: HubCache, saved: Path) -> None:
    hub.put(NAME, saved)
    (saved / "flowopd.json").unlink()
    tensors = saved / "adapter_model.safetensors"
    bank_with_student(alpha=3.0).save("student", saved, metadata={}, lora_prefix=None)
    hub.put(NAME, saved, revision="v2", commit=OTHER)
    assert tensors.is_file()
    assert read_adapter(NAME).config.alpha == 10
    assert read_adapter(f"{NAME}@v2").config.alpha == 3
    assert read_adapter(f"{NAME}@v2").origin["commit"] == OTHER
    assert read_adapter(f"{NAME}@{OTHER}").config.alpha == 3
    with pytest.raises(FlowOPDError, match=rf"{NAME} is no folder here.* at revision v3:"):
        read_adapter(f"{NAME}@v3")


def test_a_folder_of_that_name_is_taken_first(hub: HubCache, saved: Path) -> None:
    hub.put(NAME, saved)
    shutil.copytree(saved, NAME)
    assert read_adapter(NAME).origin == {}


def test_only_what_an_adapter_needs_is_asked_for_and_once(
    hub: HubCache, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    first, again = read_adapter(f"{NAME}@main"), read_adapter(f"{NAME}@main")
    assert first.sha256 == again.sha256
    assert [repository for repository, _ in asked] == [NAME]
    assert asked[0][1]["revision"] == "main"
    patterns = set(asked[0][1]["allow_patterns"])
    assert patterns == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "flowopd.json",
    }
    assert not any(pattern.endswith(".bin") or "*" in pattern for pattern in patterns)


def test_pickled_weights_of_the_hub_are_not_read(hub: HubCache, saved: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    torch.save(read_adapter(saved).tensors, saved / "adapter_model.bin")
    weights.unlink()
    (saved / "pytorch_lora_weights.safetensors").unlink()
    hub.put(NAME, saved)
    with pytest.raises(FlowOPDError, match=rf"{NAME} is on the Hugging Face hub, but there is no"):
        read_adapter(NAME)


def test_a_name_that_is_nowhere_says_so_of_both_places(hub: HubCache) -> None:
    with pytest.raises(
        FlowOPDError,
        match=r"adapters/genevl is no folder here, and cannot be fetched from the Hugging Face hub",
    ):
        read_adapter("adapters/genevl")
    with pytest.raises(FlowOPDError, match=r"No adapter at .*runs/a/adapter: there is no such"):
        read_adapter("runs/a/adapter")


def test_every_failure_of_the_hub_is_a_sentence(
    hub: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in hub_errors():

        def fail(*args: Any, kind: Any = kind, **kwargs: Any) -> None:
            raise kind("it does\n  not answer")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(FlowOPDError, match="hub: it does not answer"):
            read_adapter(NAME)


def test_a_failure_is_not_remembered(hub: HubCache, saved: Path) -> None:
    with pytest.raises(FlowOPDError, match="no folder here"):
        read_adapter(NAME)
    hub.put(NAME, saved)
    assert adapter_hub.fetch(NAME) is not None


# --- in configurations -------------------------------------------------------------------------


class Named(Config):
    adapter: AdapterPath


def place_of(folder: Path, text: str) -> Path:
    (folder / "it.yaml").write_text(json.dumps({"adapter": text}))
    return load_config(Named, folder / "it.yaml").adapter


def test_a_path_beside_the_file_comes_first_then_the_working_folder_then_the_hub(
    hub: HubCache, tmp_path: Path
) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    assert place_of(recipes, NAME) == Path(NAME)
    assert place_of(recipes, f"{NAME}@v1") == Path(f"{NAME}@v1")
    (tmp_path / NAME).mkdir(parents=True)
    assert place_of(recipes, NAME) == tmp_path / NAME
    (recipes / NAME).mkdir(parents=True)
    assert place_of(recipes, NAME) == recipes / NAME


@pytest.mark.parametrize("text", ["adapter", "runs/a/adapter", "../a", "adapters/a.safetensors"])
def test_what_can_only_be_a_path_is_beside_the_file(
    hub: HubCache, tmp_path: Path, text: str
) -> None:
    assert place_of(tmp_path, text) == tmp_path / text
    assert place_of(tmp_path, str(tmp_path / text)) == tmp_path / text
