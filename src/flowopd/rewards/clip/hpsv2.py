"""HPSv2: a CLIP ViT-H taught by how people ranked pictures of a prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowopd.devices import pick_device
from flowopd.rewards import model_files
from flowopd.rewards.drawn import check_pairs
from flowopd.rewards.network_scorer import NetworkScorer
from flowopd.rewards.scorer import Finding, MetricInfo
from flowopd.rewards.settings import ModelPlace, ScorerSettings

if TYPE_CHECKING:
    from flowopd.rewards.clip.network import Clip


class HPSv2Settings(ScorerSettings):
    model: ModelPlace = "xswu/HPSv2"
    """A file, or a folder or repository with `file` in it."""
    file: str = Field("HPS_v2.1_compressed.pt", min_length=1)
    tokenizer: ModelPlace = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class HPSv2(NetworkScorer[HPSv2Settings, "Clip"]):
    """`cos(text, picture)`, for real models about 0.2 to 0.35."""

    Settings = HPSv2Settings
    name = "hpsv2"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("hpsv2", -1.0, 1.0),)
    models = ("{model}", "{tokenizer} (tokenizer)")
    licence = "Apache-2.0"
    cost = "3.9 GB to fetch, 3.9 GB of memory, 0.37 TFLOP a picture"

    def _open(self) -> "Clip":
        device, settings = pick_device(self.settings.device), self.settings
        weights = model_files.weights_file(self.name, "model", settings.model, [settings.file])
        tokenizer = model_files.tokenizer_folder(self.name, "tokenizer", settings.tokenizer)
        from flowopd.rewards.clip.open_clip import load_open_clip

        return load_open_clip(weights, tokenizer, device)

    def _read(
        self, network: "Clip", images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> list[float]:
        return network.cosines(images, prompts)

    def self_check(self) -> list[Finding]:
        return check_pairs(self, 0.1, 0.45)
