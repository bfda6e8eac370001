"""Models that compute shapes and no numbers, on the meta device."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from flowopd.policy.generate import SamplingConfig
from flowopd.policy.protocol import ModelConfig, VelocityModel

META = torch.device("meta")


class Outline(VelocityModel, Protocol):
    """A model without weights."""

    vae: nn.Module
    encoders: Mapping[str, nn.Module]
    """The text encoders, by what the pipeline calls them."""

    def run_encoders(self) -> None:
        """Each text encoder, on as many prompts as go through it at a time."""


def has_outline(config: ModelConfig) -> bool:
    """Whether the family is one whose networks can be rehearsed."""
    from flowopd.policy.sd3 import SD3Config

    return isinstance(config, SD3Config)


def outlined(config: ModelConfig) -> ModelConfig:
    """The same configuration, which opens an outline."""
    from flowopd.planning.sd3_outline import OutlinedSD3Config

    return OutlinedSD3Config.model_construct(**{**dict(config), "device": "meta"})


def open_outline(config: ModelConfig) -> Outline:
    """Of a configuration that `outlined` gave."""
    return cast(Outline, config.open())


def pixels(model: Outline, sampling: SamplingConfig) -> tuple[int, int]:
    """Height and width of a picture."""
    _, height, width = model.latent_shape(sampling.height, sampling.width)
    each: int = 2 ** (len(cast(Any, model.vae).config.block_out_channels) - 1)
    return each * height, each * width


def frozen(module: nn.Module, dtype: torch.dtype, kept: Sequence[str] = ()) -> Any:
    """As it is loaded: frozen, in a precision but for modules that are `kept` in float32."""
    for name, owner in module.named_modules():
        own = torch.float32 if set(kept) & set(name.split(".")) else dtype
        for part, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is None or not tensor.is_floating_point():
                continue
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.detach().to(own)
            else:
                owner._buffers[part] = tensor.to(own)
    return module.requires_grad_(False).eval()


def bytes_of(*modules: nn.Module) -> int:
    """What the parameters and buffers hold; what is shared counts once."""
    tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    return bytes_in(tensors)


def bytes_in(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def parameters_of(*modules: nn.Module) -> int:
    """How many numbers the parameters are; what is shared counts once."""
    found = {id(one): one for module in modules for one in module.parameters()}
    return sum(parameter.numel() for parameter in found.values())
