"""Merged adapters on disk: PEFT and diffusers compute the sum from them; notes and record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from random_loras import lora, of
from torch import Tensor, nn

from flowopd.files import sha256
from flowopd.merging import RECORD, MergeConfig, merge
from flowopd.policy.adapter_files import check_adapter, read_adapter
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.diffusers_lora import DIFFUSERS_WEIGHTS
from tiny_sd3 import tiny_transformer

WEIGHTS = (0.5, 0.3, 0.2)


def save_adapter(folder: Path, seed: int, **config: Any) -> dict[str, Tensor]:
    """An adapter by PEFT alone; returns the change that PEFT computes for each layer."""
    settings = LoraConfig(init_lora_weights=False, **config)
    model = get_peft_model(tiny_transformer(0), settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return deltas(model)


@torch.no_grad()
def deltas(model: nn.Module) -> dict[str, Tensor]:
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight("default").double()
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, Tensor]]:
    """Three adapters alike in nothing, and their weighted sum as PEFT has it."""
    root = tmp_path_factory.mktemp("trained")
    settings: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["attn.to_q", "attn.to_v"]},
        {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 3,
            "lora_alpha": 3,
            "target_modules": r".*\.1\.attn2?\.to_(q|k)",
            "rank_pattern": {"1.attn.to_q": 5},
            "alpha_pattern": {"attn2.to_q": 1},
        },
    ]
    folders, wanted = [], {}
    for number, (weight, config) in enumerate(zip(WEIGHTS, settings, strict=True)):
        folders.append(root / f"adapter-{number}")
        for path, delta in save_adapter(folders[-1], number, **config).items():
            wanted[path] = wanted.get(path, 0) + weight * delta
    return folders, wanted


def off_by(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest relative difference of any layer."""
    assert found.keys() == wanted.keys()
    return max(float((found[path] - wanted[path]).norm() / wanted[path].norm()) for path in wanted)


class TestInPeft:
    def test_exact_is_the_sum_in_every_layer(
        self, tmp_path: Path, trained: tuple[list[Path], dict[str, Tensor]]
    ) -> None:
        folders, wanted = trained
        merged = merge([*map(read_adapter, folders)], WEIGHTS, MergeConfig(method="exact"))
        merged.save(tmp_path / "merged")
        model = PeftModel.from_pretrained(tiny_transformer(0), tmp_path / "merged")
        assert off_by(deltas(model), wanted) < 1e-6
        assert len(set(merged.ranks.values())) > 3

    @pytest.mark.parametrize("method", ["svd", "ties", "dare"])
    def test_the_errors_are_what_peft_sees(
        self, tmp_path: Path, trained: tuple[list[Path], dict[str, Tensor]], method: str
    ) -> None:
        folders, wanted = trained
        merged = merge([*map(read_adapter, folders)], WEIGHTS, MergeConfig(method=method, rank=4))
        merged.save(tmp_path / "merged")
        model = PeftModel.from_pretrained(tiny_transformer(0), tmp_path / "merged")
        for path, found in deltas(model).items():
            error = float((found - wanted[path]).norm() / wanted[path].norm())
            assert merged.errors.layers[path] == pytest.approx(error, rel=1e-3, abs=1e-6)

    def test_it_fits_the_model_and_a_bank(
        self, tmp_path: Path, trained: tuple[list[Path], dict[str, Tensor]]
    ) -> None:
        merge([*map(read_adapter, trained[0])], WEIGHTS, MergeConfig()).save(tmp_path / "merged")
        check_adapter(tmp_path / "merged", tiny_transformer(0))
        AdapterBank(tiny_transformer(0)).load("merged", tmp_path / "merged", Role.STUDENT)


class TestForDiffusers:
    """A parent that diffusers can load makes a merged adapter that it can load."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        bank = AdapterBank(tiny_transformer(0), base_name="tiny", fingerprint="f00d")
        bank.create("it", Role.STUDENT, rank=2, alpha=8, targets=("attn.to_q",))
        generator = torch.Generator().manual_seed(0)
        state = {
            key: torch.randn(tensor.shape, generator=generator)
            for key, tensor in bank.state_dict("it").items()
        }
        bank.load_state_dict("it", state)
        bank.save("it", tmp_path / "a", metadata={}, lora_prefix="transformer")
        return tmp_path / "a"

    def test_diffusers_computes_the_same(
        self, tmp_path: Path, folder: Path, tiny_pipeline: Path
    ) -> None:
        save_adapter(tmp_path / "b", 1, r=3, lora_alpha=2, target_modules=["attn.to_k"])
        parents = [read_adapter(folder), read_adapter(tmp_path / "b")]
        merge(parents, [0.5, 0.5], MergeConfig(method="exact")).save(tmp_path / "merged")
        pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
        pipeline.load_lora_weights(tmp_path / "merged", adapter_name="default")
        model = PeftModel.from_pretrained(tiny_transformer(0), tmp_path / "merged")
        assert off_by(deltas(pipeline.transformer), deltas(model)) < 1e-6

    def test_the_file_is_written_if_a_parent_has_one(self, tmp_path: Path, folder: Path) -> None:
        save_adapter(tmp_path / "b", 1, r=3, lora_alpha=2, target_modules=["attn.to_k"])
        plain = read_adapter(tmp_path / "b")
        for number, source in enumerate((folder, folder / DIFFUSERS_WEIGHTS)):
            merged = merge([plain, read_adapter(source)], [0.5, 0.5], MergeConfig())
            merged.save(tmp_path / f"merged-{number}")
            assert (tmp_path / f"merged-{number}" / DIFFUSERS_WEIGHTS).is_file()
        merge([plain], [1.0], MergeConfig()).save(tmp_path / "plain")
        assert not (tmp_path / "plain" / DIFFUSERS_WEIGHTS).exists()


TRAINED = {"base": "world", "fingerprint": "f00d", "guidance": 3.0, "t5_length": 128}


class TestNotes:
    def test_what_the_parents_share_is_kept(self, tmp_path: Path) -> None:
        one = lora(1, notes={**TRAINED, "role": "student", "updates": 5})
        two = lora(2, notes={**TRAINED, "role": "teacher", "updates": 5})
        merged = merge([one, two], [0.25, 0.75], MergeConfig(rank=2))
        merged.save(tmp_path / "merged")
        notes = dict(read_adapter(tmp_path / "merged").notes)
        digest = notes.pop("sha256")["adapter_model.safetensors"]
        assert digest == sha256(tmp_path / "merged" / "adapter_model.safetensors")
        assert notes == {
            "role": "merged",
            **TRAINED,
            "merge": {
                "method": "svd",
                "rank": 2,
                "error": merged.errors.total,
                "parents": [
                    {"name": "lora-1", "weight": 0.25, "sha256": one.sha256},
                    {"name": "lora-2", "weight": 0.75, "sha256": two.sha256},
                ],
            },
        }
        assert not merged.warnings

    def test_what_they_differ_in_is_left_out_and_warns(self) -> None:
        one = lora(1, notes=TRAINED)
        two = lora(2, notes={**TRAINED, "guidance": 1.0}, source="runs/two/adapter")
        merged = merge([one, two], [0.5, 0.5], MergeConfig())
        assert "guidance" not in merged.notes
        assert merged.notes["t5_length"] == 128
        assert merged.warnings == [
            "the adapters were trained for different guidance: 3.0 (lora-1), 1.0 (adapter); the "
            "merged adapter does not say any."
        ]

    def test_an_adapter_that_does_not_say_its_base_warns(self) -> None:
        merged = merge([lora(1, notes=TRAINED), lora(2)], [0.5, 0.5], MergeConfig())
        assert merged.notes["fingerprint"] == "f00d"
        assert "lora-2 does not say which base" in merged.warnings[0]
        assert not merge([lora(1), lora(2)], [0.5, 0.5], MergeConfig()).warnings

    def test_parents_are_named_so_that_they_can_be_told_apart(self) -> None:
        pair = [lora(n, source=f"runs/stages/{n}/adapter") for n in (1, 2)]
        merged = merge(pair, [0.5, 0.5], MergeConfig())
        assert [parent["name"] for parent in merged.parents] == ["1/adapter", "2/adapter"]


class TestRecord:
    def test_it_is_written_beside_the_adapter_or_elsewhere(self, tmp_path: Path) -> None:
        merged = merge([lora(1), lora(2, rank=5)], [0.5, 0.5], MergeConfig(method="exact"))
        merged.save(tmp_path / "a")
        merged.save(tmp_path / "b" / "adapter", tmp_path / "b" / RECORD)
        record = json.loads((tmp_path / "a" / RECORD).read_text())
        assert record == json.loads((tmp_path / "b" / RECORD).read_text())
        assert not (tmp_path / "b" / "adapter" / RECORD).exists()
        assert record["method"] == "exact"
        assert record["error"] == merged.errors.total < 1e-6
        assert record["layers"]["block.0.to_k"]["rank"] == 8
        assert record["parameters"] == 8 * (12 + 10 + 9 + 14 + 12 + 10)
        assert [parent["weight"] for parent in record["parents"]] == [0.5, 0.5]

    def test_it_is_json_even_if_nothing_was_intended(self, tmp_path: Path) -> None:
        one = lora(1)
        opposite = of(one.config, {k: -t if "_A" in k else t for k, t in one.tensors.items()})
        merge([one, opposite], [0.5, 0.5], MergeConfig(method="dare")).save(tmp_path / "a")
        assert json.loads((tmp_path / "a" / RECORD).read_text())["error"] is None
