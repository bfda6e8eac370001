"""CLIPScore: how alike OpenAI's CLIP finds a picture and its prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowopd.devices import pick_device
from flowopd.rewards import model_files
from flowopd.rewards.drawn import check_pairs
from flowopd.rewards.network_scorer import NetworkScorer
from flowopd.rewards.scorer import Finding, MetricInfo
from flowopd.rewards.settings import ModelPlace, ScorerSettings

if TYPE_CHECKING:
    from flowopd.rewards.clip.network import Clip


class ClipScoreSettings(ScorerSettings):
    model: ModelPlace = "openai/clip-vit-large-patch14"


class ClipScore(NetworkScorer[ClipScoreSettings, "Clip"]):
    """The pair's logit, `exp(logit_scale) · cos(text, picture)`: for real models about 10 to 40."""

    Settings = ClipScoreSettings
    name = "clipscore"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("clipscore", scale=30.0),)
    models = ("{model}",)
    licence = "MIT"
    cost = "1.7 GB to fetch, 1.7 GB of memory, 0.17 TFLOP a picture"

    def _open(self) -> "Clip":
        device, model = pick_device(self.settings.device), self.settings.model
        folder = model_files.network_folder(self.name, "model", model)
        tokenizer = model_files.tokenizer_folder(self.name, "model", model)
        pictures = model_files.pictures_folder(self.name, "model", model)
        from flowopd.rewards.clip.network import load_clip

        return load_clip(folder, tokenizer, pictures, device)

    def _read(
        self, network: "Clip", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return [network.scale * cosine for cosine in network.cosines(images, prompts)]

    def self_check(self) -> list[Finding]:
        return check_pairs(self, 10, 40)
