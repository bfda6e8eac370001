"""LAION's aesthetic score: a linear rating, on CLIP's features, of how people liked pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowopd.devices import pick_device
from flowopd.rewards import model_files
from flowopd.rewards.drawn import BLUE_CIRCLE, RED_SQUARE, check_alone, draw, noise, read, within
from flowopd.rewards.network_scorer import NetworkScorer
from flowopd.rewards.scorer import Finding, MetricInfo
from flowopd.rewards.settings import ModelPlace, ScorerSettings

if TYPE_CHECKING:
    from flowopd.rewards.clip.aesthetic_head import Aesthetic

HEADS = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth")
"""What the head is called by its authors, and on the hub."""


class AestheticSettings(ScorerSettings):
    model: ModelPlace = "openai/clip-vit-large-patch14"
    head: ModelPlace = "trl-lib/ddpo-aesthetic-predictor"
    """A file, or a folder or repository with one of HEADS."""


class AestheticScore(NetworkScorer[AestheticSettings, "Aesthetic"]):
    """The head's output on the picture's features, for real models about 1 to 10.

    The prompt does not matter.
    """

    Settings = AestheticSettings
    name = "aesthetic"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("aesthetic"),)
    models = ("{model}", "{head}")
    licence = "MIT (CLIP), Apache-2.0 (head)"
    cost = "1.7 GB to fetch, 1.2 GB of memory, 0.16 TFLOP a picture"

    def _open(self) -> "Aesthetic":
        device, model = pick_device(self.settings.device), self.settings.model
        folder = model_files.network_folder(self.name, "model", model)
        pictures = model_files.pictures_folder(self.name, "model", model)
        head = model_files.weights_file(self.name, "head", self.settings.head, HEADS)
        from flowopd.rewards.clip.aesthetic_head import load_aesthetic

        return load_aesthetic(folder, pictures, head, device)

    def _read(
        self, network: "Aesthetic", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return network.ratings(images)

    def self_check(self) -> list[Finding]:
        pictures = [draw(RED_SQUARE), draw(BLUE_CIRCLE), noise()]
        values = read(self, pictures, [""] * len(pictures))
        names = ("a drawn square", "a drawn circle", "noise")
        return [
            *(within(name, value, 1, 10) for name, value in zip(names, values, strict=True)),
            check_alone(self, pictures[1], "", values[1], 9),
        ]
