"""`qwenvl`: a vision chat model that rates quality, instruction following, and both together."""

from pydantic import Field

from flowopd.rewards.judges.judge import Judge
from flowopd.rewards.judges.settings import JudgeSettings


class QwenVLSettings(JudgeSettings):
    model: str = Field("Qwen/Qwen2.5-VL-7B-Instruct", min_length=1)


class QwenVL(Judge):
    """The overall score of our rubric, 1 to 5; the other two are kept beside it."""

    Settings = QwenVLSettings
    name = "qwenvl"

    def __init__(self, settings: QwenVLSettings | None = None) -> None:
        super().__init__(settings or QwenVLSettings())
