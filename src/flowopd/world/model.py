"""The world as a model family: `family: world`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowopd.errors import FlowOPDError
from flowopd.policy.protocol import JOINT_ATTENTION, ModelConfig, PromptEmbeds, VelocityModel

if TYPE_CHECKING:
    from flowopd.world.network import WorldNetwork


CHUNK = 32


class WorldConfig(ModelConfig):
    """The base that ships with the package, or one made by `flowopd world pretrain`."""

    family: Literal["world"] = "world"
    path: Path | None = None
    gradient_checkpointing: bool = False

    @property
    def folder(self) -> Path:
        from flowopd.world import assets

        return self.path or assets.FOLDER

    def check(self) -> None:
        from flowopd.world import assets

        assets.read_card(self.folder)

    def check_pictures(self, prompts: Sequence[str], height: int | None, width: int | None) -> None:
        from flowopd.world.text_encoder import token_ids

        check_size(height, width)
        token_ids(prompts)

    def fingerprint(self) -> str:
        from flowopd.world import assets

        return str(assets.read_card(self.folder)["sha256"])

    def skeleton(self) -> nn.Module:
        from flowopd.world import assets

        return assets.skeleton()

    def open(self) -> VelocityModel:
        from flowopd.world import assets

        network = assets.load_base(self.folder)
        if self.gradient_checkpointing:
            network.transformer.enable_gradient_checkpointing()
        return WorldModel(network, fingerprint=self.fingerprint())


class WorldModel:
    """The world's network behind the protocol of a velocity model."""

    name = "world"
    settings: Mapping[str, Any] = {}
    shift = 3.0
    lora_prefix: str | None = None
    default_targets: tuple[str, ...] = JOINT_ATTENTION
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, network: "WorldNetwork", fingerprint: str) -> None:
        self.transformer = network.transformer
        self.text_encoder: nn.Module | None = network.text_encoder
        self.fingerprint = fingerprint
        self.text_key = fingerprint

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        from flowopd.world.network import LATENT

        check_size(height, width)
        return LATENT

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        from flowopd.world.text_encoder import token_ids

        if self.text_encoder is None:
            raise FlowOPDError(
                f"The text encoder has been freed; the prompt '{prompts[0]}' has to come from a "
                f"text cache that was filled before."
            )
        return PromptEmbeds(*self.text_encoder(token_ids(prompts)))

    def velocity(self, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
        """In chunks of one size, the last one padded: matrix kernels round by the batch's size.

        So a picture is the same to the bit whatever batch it is drawn in.
        """
        from flowopd.world.network import run_transformer

        sizes = [len(part) for part in x.split(CHUNK)]
        pad = -len(x) % CHUNK
        parts = zip(
            *(
                nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, pad)).split(CHUNK)
                for tensor in (x.float(), t, prompts.sequence, prompts.pooled)
            ),
            strict=True,
        )
        done = [
            run_transformer(self.transformer, *part)[:size]
            for size, part in zip(sizes, parts, strict=True)
        ]
        return torch.cat(done)

    def decode(self, latents: Tensor) -> Tensor:
        from flowopd.world.network import to_images

        return to_images(latents.float())

    def drop_text_encoders(self) -> None:
        self.text_encoder = None


def check_size(height: int | None, width: int | None) -> None:
    from flowopd.world.palette import CANVAS

    if {height, width} - {None, CANVAS}:
        raise FlowOPDError(
            f"The world draws {CANVAS} by {CANVAS} pixels, not {height} by {width}; leave both "
            f"height and width out."
        )
