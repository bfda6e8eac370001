"""The velocities of a run by role: one network, an adapter and a guidance for each."""

import torch
from torch import Tensor

from flowopd.flow import VelocityFn, guided
from flowopd.policy.bank import AdapterBank
from flowopd.policy.generate import Encode
from flowopd.policy.protocol import PromptEmbeds, VelocityModel


class Velocities:
    """Binds adapter, prompts and guidance, and counts the forwards that are made."""

    def __init__(self, model: VelocityModel, bank: AdapterBank, encode: Encode) -> None:
        self.model, self.bank = model, bank
        self.forwards = 0
        """Samples that went through the network, twice with guidance."""
        self._encode = encode
        self._empty: PromptEmbeds | None = None

    def embed(self, prompts: list[str]) -> PromptEmbeds:
        """Each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        embeds = self._encode(unique).to(self.model.device)
        return embeds.select([unique.index(prompt) for prompt in prompts])

    def student(self, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        """With a gradient where gradients are on."""
        return self._bound(self.bank.student, cond, guidance)

    def frozen(self, adapter: str | None, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        """A teacher, the anchor, or with None the base; never with a gradient."""
        return torch.no_grad()(self._bound(adapter, cond, guidance))

    def _bound(self, adapter: str | None, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        uncond = None if guidance == 1 else self._uncond(len(cond))
        velocity = guided(self.model.velocity, cond, uncond, guidance)
        cost = len(cond) * (1 if guidance == 1 else 2)

        def call(x: Tensor, t: Tensor) -> Tensor:
            self.forwards += cost
            with self.bank.using(adapter):
                return velocity(x, t)

        return call

    def _uncond(self, count: int) -> PromptEmbeds:
        if self._empty is None:
            self._empty = self._encode([""]).to(self.model.device)
        return self._empty.select([0] * count)
