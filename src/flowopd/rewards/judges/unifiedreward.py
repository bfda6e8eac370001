"""`unifiedreward`: UnifiedReward's score of a caption and a picture."""

from pydantic import Field

from flowopd.rewards.judges.judge import Judge
from flowopd.rewards.judges.settings import JudgeSettings


class UnifiedRewardSettings(JudgeSettings):
    base_url: str = "http://127.0.0.1:17140/v1"
    model: str = Field("CodeGoat24/UnifiedReward-7b-v1.5", min_length=1)
    size: int | None = Field(512, ge=16)


class UnifiedReward(Judge):
    """Pictures are shown at 512 x 512, and 1 to 5 is read after `Final Score:`."""

    Settings = UnifiedRewardSettings
    name = "unifiedreward"

    def __init__(self, settings: UnifiedRewardSettings | None = None) -> None:
        super().__init__(settings or UnifiedRewardSettings())
