"""What a velocity model is: everything that sampling and training need to know of a network.

Shapes: B samples, L tokens, C token width, P width of the pooled embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from flowopd.config import Config
from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    from flowopd.policy.network import Network, NetworkFiles


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings of B prompts: one vector per token, and one for the whole prompt."""

    sequence: Tensor
    pooled: Tensor

    def __post_init__(self) -> None:
        shapes = f"{list(self.sequence.shape)} and {list(self.pooled.shape)}"
        if self.sequence.ndim != 3 or self.pooled.ndim != 2:
            raise FlowOPDError(f"Prompt embeddings are [B,L,C] and [B,P], not {shapes}.")
        if len(self.sequence) != len(self.pooled):
            raise FlowOPDError(f"Prompt embeddings of different batch sizes: {shapes}.")

    def __len__(self) -> int:
        return len(self.sequence)

    def join(self, other: "PromptEmbeds") -> "PromptEmbeds":
        """These prompts, then the other's."""
        return PromptEmbeds.cat([self, other])

    def select(self, indices: Sequence[int] | Tensor) -> "PromptEmbeds":
        """The prompts at the indices; an index may come more than once."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.sequence.device)
        return PromptEmbeds(self.sequence[index], self.pooled[index])

    def expand(self, count: int) -> "PromptEmbeds":
        """One prompt as many times as asked, in the memory of one."""
        return PromptEmbeds(self.sequence.expand(count, -1, -1), self.pooled.expand(count, -1))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "PromptEmbeds":
        return PromptEmbeds(
            self.sequence.to(device=device, dtype=dtype), self.pooled.to(device=device, dtype=dtype)
        )

    @staticmethod
    def cat(parts: Sequence["PromptEmbeds"]) -> "PromptEmbeds":
        """The prompts of all parts in order; the parts must agree in everything but number."""
        shapes = {(*part.sequence.shape[1:], *part.pooled.shape[1:]) for part in parts}
        if len(shapes) != 1:
            found = ", ".join(str(shape) for shape in sorted(shapes)) or "nothing"
            raise FlowOPDError(f"Prompt embeddings of one shape (L, C, P) join, not {found}.")
        return PromptEmbeds(
            torch.cat([part.sequence for part in parts]), torch.cat([part.pooled for part in parts])
        )


JOINT_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""The projections of the joint attention of SD3's blocks: what the published LoRAs adapt."""


class VelocityModel(Protocol):
    """A network that gives the velocity of (4), with what is around it: text and pixels."""

    name: str
    fingerprint: str
    """SHA-256 that tells one set of base weights from another; adapters carry it."""
    settings: Mapping[str, Any]
    """What else an adapter trained on this model depends on: how prompts are embedded (`t5`,
    `t5_length`), which revision the weights were (`revision`). Plain values; saved with adapters.
    """
    transformer: nn.Module
    shift: float
    """The shift of the noise schedule that the model was trained with."""
    lora_prefix: str | None
    """What diffusers puts before the keys of a LoRA file; None if it does not know the family."""
    default_targets: tuple[str, ...]
    """Names (endings of module paths) of the layers that a new LoRA adapts."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image; None is the model's own size."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds: ...

    def velocity(self, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
        """v(x_t, t, c) in float32 for latents x [B,...] at noise levels t [B]; no guidance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B,3,H,W], float32 in [0,1]."""
        ...

    def drop_text_encoders(self) -> None:
        """Free the text encoders; from then on prompts come from a text cache."""
        ...


class ModelConfig(Config, ABC):
    """Names a model; each family has its own subclass, found by the name of the family."""

    family: str

    whole_networks: ClassVar[bool] = False
    """Whether there are whole networks of this family: as teachers, and students of which all is
    trained."""

    @abstractmethod
    def check(self) -> None:
        """Refuse, before any weight is loaded, what cannot be opened."""

    def check_training(self) -> None:
        """Refuse what can be sampled from, and not be trained."""

    def check_pictures(self, prompts: Sequence[str], height: int | None, width: int | None) -> None:
        """Refuse prompts and sizes that the model does not know, where that is cheap to tell."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """The fingerprint of the weights without loading them; None: only known once fetched."""

    def surroundings(self) -> dict[str, str]:
        """What else pictures depend on, such as the autoencoder, each by its SHA-256; adapters do
        not carry it. Empty: nothing else, or what is only known once fetched."""
        return {}

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The transformer without weights, on the meta device."""

    @abstractmethod
    def open(self) -> VelocityModel:
        """The model with its weights."""

    def network(self, source: Path) -> "NetworkFiles":
        """A whole network that can teach this model, looked at and not loaded."""
        raise FlowOPDError(
            f"{source} holds no adapter, and the family {self.family} has no whole networks as "
            "teachers; give the folder of an adapter."
        )

    def own_network(self) -> "NetworkFiles":
        """The model's own transformer, for a student of which all is trained; its weights are
        there, once the model has been opened."""
        raise NotImplementedError

    def open_network(
        self, files: "NetworkFiles", device: torch.device, dtype: torch.dtype | None = None
    ) -> "Network":
        """The network with its weights on a device; None is the model's own precision."""
        raise NotImplementedError


def require_finite(embeds: PromptEmbeds, prompts: Sequence[str]) -> None:
    """Refuse embeddings with a NaN or an infinity, naming the first such prompt."""
    finite = embeds.sequence.isfinite().flatten(1).all(1) & embeds.pooled.isfinite().all(1)
    for prompt, good in zip(prompts, finite.tolist(), strict=True):
        if not good:
            raise FlowOPDError(
                f"The embedding of the prompt {prompt!r} in {embeds.sequence.dtype} is not finite; "
                "use dtype: bf16 or fp32 (T5 may overflow in fp16)."
            )
