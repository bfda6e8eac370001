"""PickScore: a CLIP ViT-H taught by which of two pictures people picked for a prompt."""

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


class PickScoreSettings(ScorerSettings):
    model: ModelPlace = "yuvalkirstain/PickScore_v1"
    processor: ModelPlace = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """What has the tokenizer and the preparation of pictures."""


class PickScore(NetworkScorer[PickScoreSettings, "Clip"]):
    """`exp(logit_scale) · cos(text, picture)`, for real models about 15 to 27."""

    Settings = PickScoreSettings
    name = "pickscore"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("pickscore", scale=26.0),)
    models = ("{model}", "{processor}")
    licence = "MIT"
    cost = "3.9 GB to fetch, 3.9 GB of memory, 0.37 TFLOP a picture"

    def _open(self) -> "Clip":
        device = pick_device(self.settings.device)
        model, processor = self.settings.model, self.settings.processor
        folder = model_files.network_folder(self.name, "model", model)
        tokenizer = model_files.tokenizer_folder(self.name, "processor", processor)
        pictures = model_files.pictures_folder(self.name, "processor", processor)
        from flowopd.rewards.clip.network import load_clip

        return load_clip(folder, tokenizer, pictures, device)

    def _read(
        self, network: "Clip", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return [network.scale * cosine for cosine in network.cosines(images, prompts)]

    def self_check(self) -> list[Finding]:
        return check_pairs(self, 10, 30)
