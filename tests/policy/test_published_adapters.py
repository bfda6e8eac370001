"""Adapters as others publish them: settings of many versions of PEFT, keys with wrappers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import velocity
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.policy.adapter_files import AdapterFiles, check_adapter, read_adapter
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.lora_match import expected_shapes, linear_layers
from published import (
    ADDED,
    ALPHA,
    EIGHT,
    PEFT_PREFIX,
    RANK,
    WEIGHTS,
    attention_tensors,
    config_of,
    publish,
)
from tiny_sd3 import tiny_transformer

DIFFUSERS = "pytorch_lora_weights.safetensors"


@torch.no_grad()
def velocity_with(folder: Path) -> Tensor:
    bank = AdapterBank(tiny_transformer(0))
    bank.load("it", folder, Role.TEACHER)
    with bank.using("it"):
        return velocity(bank.transformer)


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """By weights into which the adapter was added: alpha / r = 2."""
    merged, tensors = tiny_transformer(0), attention_tensors()
    with torch.no_grad():
        for key in [key for key in tensors if ".lora_A." in key]:
            path = key.removesuffix(".lora_A.weight")
            product = tensors[f"{path}.lora_B.weight"] @ tensors[key]
            merged.get_submodule(path).weight += ALPHA / RANK * product
        return velocity(merged)


@pytest.mark.parametrize("version", ADDED)
def test_settings_of_every_version_of_peft(tmp_path: Path, version: str, expected: Tensor) -> None:
    folder = publish(tmp_path / "adapter", config_of(version))
    files = read_adapter(folder)
    assert (files.config.rank, files.config.alpha) == (RANK, ALPHA)
    assert files.config.scaling_of("transformer_blocks.0.attn.to_q") == 2
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


def test_settings_as_the_installed_peft_writes_them(tmp_path: Path, expected: Tensor) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(EIGHT)).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    folder = publish(tmp_path / "adapter", config)
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["0.10", "0.21"])
def test_rank_and_alpha_that_are_not_said_are_pefts(tmp_path: Path, version: str) -> None:
    config = {k: v for k, v in config_of(version).items() if k not in ("r", "lora_alpha")}
    files = read_adapter(publish(tmp_path / "adapter", config))
    assert (files.config.rank, files.config.alpha) == (8, 8)
    with pytest.raises(FlowOPDError, match=r"keys of the wrong shape .*is \[32, 32\], not \[8, 32"):
        check_adapter(tmp_path / "adapter", tiny_transformer(0))


def test_settings_that_say_next_to_nothing(tmp_path: Path, expected: Tensor) -> None:
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(EIGHT), "bias": None}
    folder = publish(tmp_path / "adapter", config)
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 0.1}),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("loftq_config", {"loftq_bits": 4}),
        ("lora_bias", True),
        ("modules_to_save", ["proj_out"]),
        ("target_parameters", ["weight"]),
        ("trainable_token_indices", [1]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_dora", True),
        ("use_qalora", True),
        ("a_thing_of_the_future", {"on": True}),
    ],
)
def test_what_is_set_and_not_plain_lora_is_named(tmp_path: Path, field: str, value: object) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.21") | {field: value})
    with pytest.raises(FlowOPDError, match=rf"adapter_config\.json: {field}=.*Plain LoRA is"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_mapping", {"base_model_class": "SD3Transformer2DModel", "parent_library": "x"}),
        ("base_model_name_or_path", None),
        ("eva_config", {"rho": 2.0}),
        ("init_lora_weights", False),
        ("layers_pattern", []),
        ("layers_pattern", ""),
        ("lora_dropout", 0.1),
        ("megatron_config", {"a": 1}),
        ("peft_version", "0.99.0.dev0@UNKNOWN"),
        ("runtime_config", {"ephemeral_gpu_offload": False}),
        ("task_type", "FEATURE_EXTRACTION"),
    ],
)
def test_what_does_not_change_the_adapter_may_say_anything(
    tmp_path: Path, field: str, value: object, expected: Tensor
) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.21") | {field: value})
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


def test_targets_of_the_first_attention_do_not_take_the_second() -> None:
    network = tiny_transformer(0)
    layers = linear_layers(network)
    second = [path for path in layers if ".attn2." in path]
    assert len(second) == 8  # q, k, v and out of the first two blocks
    settings = read_settings(list(EIGHT))
    selected = settings.config.select(layers)
    assert {path.split(".")[2] for path in selected} == {"attn"}
    assert len(selected) == 8 * 3 - 1  # the last block has no to_add_out
    assert len(expected_shapes(settings.config, layers)) == 2 * len(selected)


@pytest.mark.parametrize(
    ("targets", "second"),
    [
        (["to_q"], True),
        (["attn2.to_q"], True),
        (r".*\.attn\.to_q", False),
        (r".*\.attn2?\.to_q", True),
        (["0.attn.to_q"], False),
    ],
)
def test_targets_match_whole_names_at_the_end_of_a_path(targets: Any, second: bool) -> None:
    selected = read_settings(targets).config.select(linear_layers(tiny_transformer(0)))
    assert any("attn2.to_q" in path for path in selected) is second


def read_settings(targets: Any) -> AdapterFiles:
    from flowopd.policy.lora import LoraSettings

    chosen = targets if isinstance(targets, str) else tuple(targets)
    return AdapterFiles(Path(), "peft", LoraSettings(RANK, ALPHA, chosen), {}, {}, "")


def test_weights_of_the_second_attention_in_an_adapter_of_the_first_are_named(
    tmp_path: Path,
) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.10"))
    key = "transformer_blocks.0.attn2.to_q.lora_A.weight"
    tensors = load_file(folder / WEIGHTS) | {PEFT_PREFIX + key: torch.zeros(RANK, 32)}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(FlowOPDError, match=rf"own target_modules do not select \({key}"):
        check_adapter(folder, tiny_transformer(0))


# --- traces of wrappers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        PEFT_PREFIX,
        "module." + PEFT_PREFIX,
        PEFT_PREFIX + "module.",
        PEFT_PREFIX + "_orig_mod.",
        "_orig_mod." + PEFT_PREFIX,
        "_orig_mod.module." + PEFT_PREFIX,
        PEFT_PREFIX + "module._orig_mod.",
    ],
)
def test_prefixes_that_wrappers_leave(tmp_path: Path, prefix: str, expected: Tensor) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.10"), prefix)
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


def test_blocks_that_were_compiled_one_by_one(tmp_path: Path, expected: Tensor) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.17"))
    compiled = {
        key.replace("transformer_blocks.1.", "transformer_blocks.1._orig_mod."): tensor
        for key, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(compiled, folder / WEIGHTS)
    assert any("_orig_mod" in key for key in compiled)
    torch.testing.assert_close(velocity_with(folder), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trace", ["_orig_mod.", "module."])
def test_wrappers_in_diffusers_files(tmp_path: Path, trace: str, expected: Tensor) -> None:
    scaled = {
        f"transformer.{trace}{key}": tensor * (ALPHA / RANK if ".lora_B." in key else 1)
        for key, tensor in attention_tensors().items()
    }
    save_file(scaled, tmp_path / DIFFUSERS)
    torch.testing.assert_close(velocity_with(tmp_path), expected, rtol=1e-4, atol=1e-5)


def test_a_name_with_and_without_a_wrapper_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.10"))
    tensors = load_file(folder / WEIGHTS)
    key = f"{PEFT_PREFIX}transformer_blocks.0.attn.to_q.lora_A.weight"
    twin = key.replace(PEFT_PREFIX, PEFT_PREFIX + "_orig_mod.")
    save_file(tensors | {twin: torch.zeros_like(tensors[key])}, folder / WEIGHTS)
    with pytest.raises(FlowOPDError, match="twice, as ") as refusal:
        read_adapter(folder)
    assert key in str(refusal.value)
    assert twin in str(refusal.value)


def test_module_on_some_keys_only_is_part_of_their_names(tmp_path: Path) -> None:
    folder = publish(tmp_path / "adapter", config_of("0.10"))
    tensors = load_file(folder / WEIGHTS)
    key = "transformer_blocks.0.attn.to_q.lora_A.weight"
    moved = {f"{PEFT_PREFIX}module.{key}": tensors.pop(PEFT_PREFIX + key)}
    save_file(tensors | moved, folder / WEIGHTS)
    with torch.device("meta"):
        skeleton = SD3Transformer2DModel.from_config(tiny_transformer(0).config)
    with pytest.raises(FlowOPDError, match=rf"no linear layer for \(module\.{key}"):
        check_adapter(folder, skeleton)
