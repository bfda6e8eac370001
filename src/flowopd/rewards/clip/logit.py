"""What the scorers have in common that give the logit of a CLIP saved by transformers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowopd.devices import pick_device
from flowopd.rewards import model_files
from flowopd.rewards.network_scorer import NetworkScorer
from flowopd.rewards.settings import ModelPlace, ScorerSettings

if TYPE_CHECKING:
    from flowopd.rewards.clip.network import Clip


class LogitSettings(ScorerSettings):
    model: ModelPlace


S = TypeVar("S", bound=LogitSettings)


class LogitScorer(NetworkScorer[S, "Clip"]):
    """`exp(logit_scale) · cos(text, picture)` of each pair."""

    processor_key: ClassVar[str]
    """The setting that names what has the tokenizer and the preparation of pictures."""

    def _open(self) -> "Clip":
        device, model, key = (
            pick_device(self.settings.device),
            self.settings.model,
            self.processor_key,
        )
        processor: Any = getattr(self.settings, key)
        folder = model_files.network_folder(self.name, "model", model)
        tokenizer = model_files.tokenizer_folder(self.name, key, processor)
        pictures = model_files.pictures_folder(self.name, key, processor)
        from flowopd.rewards.clip.network import load_clip

        return load_clip(folder, tokenizer, pictures, device)

    def _read(
        self, network: "Clip", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return [network.scale * cosine for cosine in network.cosines(images, prompts)]
