"""The velocities of a run by role: a network, an adapter and a guidance for each."""

import torch
from torch import Tensor

from flowopd.flow import ConditionalVelocity, VelocityFn, forwards_of, guided
from flowopd.policy.generate import Encode
from flowopd.policy.protocol import PromptEmbeds, VelocityModel
from flowopd.training.roles import Roles


class Velocities:
    """Binds adapter, prompts and guidance, and counts the forwards that are made."""

    def __init__(self, model: VelocityModel, roles: Roles, encode: Encode) -> None:
        self.model, self.roles = model, roles
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
        velocity = self._guided(self.model.velocity, cond, guidance)

        def call(x: Tensor, t: Tensor) -> Tensor:
            with self.roles.student.using():
                return velocity(x, t)

        return call

    def frozen(self, name: str | None, cond: PromptEmbeds, guidance: float) -> VelocityFn:
        """A teacher, the anchor, or with None the base; never with a gradient."""
        network = None if name is None else self.roles.networks.get(name)
        velocity = self._guided((network or self.model).velocity, cond, guidance)

        @torch.no_grad()
        def call(x: Tensor, t: Tensor) -> Tensor:
            if network is None:
                with self.roles.bank.using(name):
                    return velocity(x, t)
            if self.roles.visitors is not None:
                self.roles.visitors.bring(network)
            return velocity(x, t)

        return call

    def _guided(
        self,
        velocity: ConditionalVelocity[PromptEmbeds],
        cond: PromptEmbeds,
        guidance: float,
    ) -> VelocityFn:
        """With guidance bound, and counted."""
        uncond = None if guidance == 1 else self._uncond(len(cond))
        bound = guided(velocity, cond, uncond, guidance)
        cost = len(cond) * forwards_of(guidance)

        def call(x: Tensor, t: Tensor) -> Tensor:
            self.forwards += cost
            return bound(x, t)

        return call

    def _uncond(self, count: int) -> PromptEmbeds:
        if self._empty is None:
            self._empty = self._encode([""]).to(self.model.device)
        return self._empty.expand(count)
