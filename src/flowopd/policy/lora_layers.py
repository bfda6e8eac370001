"""Linear layers that carry LoRAs: putting them in, switching them, reaching their parameters.

Which adapter a layer computes with is a matter of which tensors lie in its slot, not of which code
it runs: compiled code serves every adapter of the same rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings, module_path

BASE = ""
"""The key of no adapter."""


class LoraLinear(nn.Module):
    """A frozen layer `W x + b` with the LoRA that is switched on: `W x + b + s B (A x)`.

    A and B are float32 and are rounded to the precision of x where they are used. A LoRA may be
    folded: its layer then computes with `W + s B A` in place of W.
    """

    down: Tensor | None
    """A of the active adapter [r, in]; None: there is none, or it is folded."""
    up: Tensor | None
    """B of the active adapter [out, r]."""
    scale: Tensor | None
    whole: Tensor | None
    """The active adapter's `W + s B A`, if it is folded."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.downs = nn.ParameterDict()
        self.ups = nn.ParameterDict()
        self._scales: dict[str, Tensor] = {}
        self._wholes: dict[str, Tensor] = {}
        self.select(BASE)

    def forward(self, x: Tensor) -> Tensor:
        if self.whole is not None:
            return linear(x, self.whole, self.base.bias)
        y = self.base(x)
        if self.down is None or self.up is None or self.scale is None:
            return y
        low = linear(x, self.down.to(x.dtype)) * self.scale
        return y + linear(low, self.up.to(x.dtype))

    @property
    def weight(self) -> Tensor:
        """Of the layer that it is in the place of: some networks ask for its precision."""
        return self.base.weight

    def add(self, key: str, down: Tensor, up: Tensor, scale: float) -> None:
        """A frozen copy of an adapter's tensors."""
        device = self.base.weight.device
        for held, tensor in ((self.downs, down), (self.ups, up)):
            value = tensor.to(device, torch.float32, copy=True).contiguous()
            held[key] = nn.Parameter(value, requires_grad=False)
        self._scales[key] = torch.tensor(scale, device=device)

    @torch.no_grad()
    def fold(self, key: str) -> None:
        """Keep `W + s B A`, in W's precision, to compute with from now on."""
        product = self._product(key)
        self._wholes[key] = (self.base.weight.float() + product).to(self.base.weight.dtype)

    @torch.no_grad()
    def rounding(self, key: str) -> Tensor:
        """Of a folded adapter: the squares of what W's precision changed in it, and of `s B A`."""
        product = self._product(key)
        error = self._wholes[key].float() - self.base.weight.float() - product
        return torch.stack([error.square().sum(), product.square().sum()])

    def _product(self, key: str) -> Tensor:
        return self.ups[key] @ self.downs[key] * self._scales[key]

    def select(self, key: str) -> None:
        """Switch an adapter on; one that does not adapt this layer (BASE, say) is the base."""
        # Written past nn.Module, which would take the tensors for parameters of its own.
        slot = self.__dict__
        slot["down"] = slot["up"] = slot["scale"] = slot["whole"] = None
        if key in self._wholes:
            slot["whole"] = self._wholes[key]
        elif key in self._scales:
            slot["down"], slot["up"] = self.downs[key], self.ups[key]
            slot["scale"] = self._scales[key]


def inject_lora(
    transformer: nn.Module, key: str, settings: LoraSettings, tensors: Mapping[str, Tensor]
) -> dict[str, LoraLinear]:
    """Put an adapter's tensors into the layers that they belong to; path -> layer."""
    layers = {}
    for path in sorted({module_path(tensor) for tensor in tensors}):
        layer = transformer.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer = LoraLinear(layer)
            transformer.set_submodule(path, layer)
        assert isinstance(layer, LoraLinear)
        down, up = tensors[path + A_SUFFIX], tensors[path + B_SUFFIX]
        layer.add(key, down, up, settings.scaling_of(path))
        layers[path] = layer
    return layers


def layer_parameters(layers: Mapping[str, LoraLinear], key: str) -> dict[str, nn.Parameter]:
    """The parameters of the adapter that the layers know by `key`."""
    found = {}
    for path, layer in layers.items():
        found[path + A_SUFFIX] = layer.downs[key]
        found[path + B_SUFFIX] = layer.ups[key]
    return found
