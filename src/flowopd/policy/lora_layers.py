"""PEFT's LoRA layers in a network: putting them in, and reaching their parameters."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings, module_path


def inject_lora(
    transformer: nn.Module, key: str, settings: LoraSettings, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Put PEFT layers where the tensors belong, holding them in float32; path -> layer.

    PEFT makes the layers on the meta device and by the keys alone: nothing is drawn from the global
    random state or rounded to the base's precision, and ranks and scalings are set from `settings`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    paths = sorted({module_path(tensor) for tensor in tensors})
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=paths)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(
            config, transformer, adapter_name=key, low_cpu_mem_usage=True, state_dict=dict(tensors)
        )
    layers = {}
    for path in paths:
        layer: Any = transformer.get_submodule(path)
        layer.r[key] = settings.rank_of(path)
        layer.lora_alpha[key] = settings.alpha_of(path)
        layer.scaling[key] = settings.scaling_of(path)
        device = layer.get_base_layer().weight.device
        for half, suffix in ((layer.lora_A[key], A_SUFFIX), (layer.lora_B[key], B_SUFFIX)):
            value = tensors[path + suffix].to(device, torch.float32, copy=True).contiguous()
            half.weight = nn.Parameter(value, requires_grad=False)
            half.out_features, half.in_features = value.shape
        layers[path] = layer
    return layers


def layer_parameters(layers: Mapping[str, Any], key: str) -> dict[str, nn.Parameter]:
    """The parameters of the adapter that PEFT's layers know by `key`."""
    found = {}
    for path, layer in layers.items():
        found[path + A_SUFFIX] = layer.lora_A[key].weight
        found[path + B_SUFFIX] = layer.lora_B[key].weight
    return found
