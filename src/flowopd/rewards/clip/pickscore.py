"""PickScore: a CLIP ViT-H taught by which of two pictures people picked for a prompt."""

from flowopd.rewards.clip.logit import LogitScorer, LogitSettings
from flowopd.rewards.drawn import check_pairs
from flowopd.rewards.scorer import Finding, MetricInfo
from flowopd.rewards.settings import ModelPlace


class PickScoreSettings(LogitSettings):
    model: ModelPlace = "yuvalkirstain/PickScore_v1"
    processor: ModelPlace = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """What has the tokenizer and the preparation of pictures."""


class PickScore(LogitScorer[PickScoreSettings]):
    """The pair's logit: for real models about 15 to 27."""

    Settings = PickScoreSettings
    name = "pickscore"
    metrics: tuple[MetricInfo, ...] = (MetricInfo("pickscore", scale=26.0),)
    models = ("{model}", "{processor}")
    licence = "MIT"
    cost = "3.9 GB to fetch, 3.9 GB of memory, 0.37 TFLOP a picture"
    processor_key = "processor"

    def self_check(self) -> list[Finding]:
        return check_pairs(self, 10, 30)
