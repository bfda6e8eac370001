"""Adapters of the tiny SD3 as others publish them: settings as many versions of PEFT wrote them.

For the eight projections of SD3's joint attention at rank 32 and alpha 64, as the published
Flow-GRPO teachers have them, on a network whose first blocks have a second attention.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowopd.policy.lora_match import linear_layers
from tiny_sd3 import tiny_transformer

# What published Flow-GRPO adapters for SD3.5-Medium were trained on.
EIGHT = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)
PEFT_PREFIX = "base_model.model."
RANK, ALPHA = 32, 64
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What PEFT has written since its first versions.
FIRST: dict[str, Any] = {
    "auto_mapping": None,
    "base_model_name_or_path": "stabilityai/stable-diffusion-3.5-medium",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "revision": None,
    "target_modules": list(EIGHT),
    "task_type": None,
}
# What every version added, to what was there before.
ADDED: dict[str, dict[str, Any]] = {
    "0.5": {},
    "0.7": {
        "alpha_pattern": {},
        "loftq_config": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "rank_pattern": {},
    },
    "0.8": {"use_rslora": False},
    "0.9": {"use_dora": False},
    "0.10": {"layer_replication": None},
    "0.14": {"eva_config": None, "exclude_modules": None, "lora_bias": False},
    "0.15": {"corda_config": None, "trainable_token_indices": None},
    "0.16": {"qalora_group_size": 16, "use_qalora": False},
    "0.17": {"target_parameters": None},
    "0.18": {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "ensure_weight_tying": False,
        "peft_version": "0.18.0",
    },
    "0.21": {
        "kasa_config": None,
        "lora_ga_config": None,
        "monteclora_config": None,
        "peft_version": "0.21.2",
        "use_bdlora": None,
        "velora_config": None,
    },
    "of the future": {
        "a_flag_of_the_future": False,
        "a_list_of_the_future": [],
        "a_mapping_of_the_future": {},
        "a_name_of_the_future": "",
        "a_thing_of_the_future": None,
    },
}


def config_of(version: str) -> dict[str, Any]:
    """`adapter_config.json` as that version of PEFT wrote it."""
    config = dict(FIRST)
    for added, fields in ADDED.items():
        config |= fields
        if added == version:
            return dict(sorted(config.items()))
    raise AssertionError(f"no settings of {version}")


def attention_tensors(seed: int = 5) -> dict[str, Tensor]:
    """Rank 32 on `attn.*` and nothing else, by the paths in the network."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        path: size
        for path, size in linear_layers(tiny_transformer(0)).items()
        if ".attn." in path and path.split(".attn.")[1] in {n.removeprefix("attn.") for n in EIGHT}
    }
    return {
        f"{path}.lora_{half}.weight": 0.03 * torch.randn(size, generator=generator)
        for path, (out, into) in layers.items()
        for half, size in (("A", (RANK, into)), ("B", (out, RANK)))
    }


def publish(folder: Path, config: dict[str, Any], prefix: str = PEFT_PREFIX, seed: int = 5) -> Path:
    """An adapter's folder with these settings and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + key: tensor for key, tensor in attention_tensors(seed).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    return folder
