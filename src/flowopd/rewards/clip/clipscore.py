"""CLIPScore: how alike OpenAI's CLIP finds a picture and its prompt."""

from flowopd.rewards.clip.logit import LogitScorer, LogitSettings
from flowopd.rewards.drawn import check_pairs
from flowopd.rewards.scorer import Finding, MetricInfo
from flowopd.rewards.settings import ModelPlace


class ClipScoreSettings(LogitSettings):
    model: ModelPlace = "openai/clip-vit-large-patch14"


class ClipScore(LogitScorer[ClipScoreSettings]):
    """The pair's logit: for real models about 10 to 40."""

    Settings = ClipScoreSettings
    name = "clipscore"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("clipscore", scale=30.0),)
    models = ("{model}",)
    licence = "MIT"
    cost = "1.7 GB to fetch, 1.7 GB of memory, 0.17 TFLOP a picture"
    processor_key = "model"

    def self_check(self) -> list[Finding]:
        return check_pairs(self, 10, 40)
