"""The scorer `imagereward`."""

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
    from flowopd.rewards.imagereward.network import Reader

WEIGHTS = ("ImageReward.pt",)


class ImageRewardSettings(ScorerSettings):
    model: ModelPlace = "THUDM/ImageReward"
    """A file, or a folder or repository with ImageReward.pt in it."""
    tokenizer: ModelPlace = "google-bert/bert-base-uncased"


class ImageReward(NetworkScorer[ImageRewardSettings, "Reader"]):
    """The rating, normalised over its authors' data: for real models about -2.5 to 2.5."""

    Settings = ImageRewardSettings
    name = "imagereward"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("imagereward"),)
    models = ("{model}", "{tokenizer} (tokenizer)")
    licence = "Apache-2.0 (BLIP: BSD-3-Clause)"
    cost = "1.8 GB to fetch, 1.8 GB of memory, 0.14 TFLOP a picture"

    def _open(self) -> "Reader":
        device, settings = pick_device(self.settings.device), self.settings
        weights = model_files.weights_file(self.name, "model", settings.model, WEIGHTS)
        tokenizer = model_files.tokenizer_folder(self.name, "tokenizer", settings.tokenizer)
        from flowopd.rewards.imagereward.network import load_reader

        return load_reader(weights, tokenizer, device)

    def _read(
        self, network: "Reader", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return network.rewards(images, prompts)

    def self_check(self) -> list[Finding]:
        return check_pairs(self, -3, 3)
