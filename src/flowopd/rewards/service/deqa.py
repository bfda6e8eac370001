"""`deqa`: DeQA-Score, which needs an old transformers and so lives in a server of its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowopd.rewards.scorer import About, MetricInfo
from flowopd.rewards.service.remote import ServedScorer
from flowopd.rewards.service.remote_settings import ServerSettings
from flowopd.tasks.prompts import PromptRecord

PORT = 8101
MODEL = "zhiyuanyou/DeQA-Score-Mix3"


class DeQASettings(ServerSettings):
    urls: list[str] = Field([f"http://127.0.0.1:{PORT}"], min_length=1)
    model: str = MODEL
    """What the servers were started with."""


class DeQA(ServedScorer):
    """The expectation over the five words of quality, 1 to 5; servers/deqa has the server."""

    Settings = DeQASettings
    settings: DeQASettings
    name, version = "deqa", 1
    metrics = (MetricInfo("deqa", 1, 5, scale=5),)
    about = About(
        models=(MODEL,),
        licence="MIT; its base LLaMA 2 has its own",
        cost="a GPU with 18 GB, in a server of its own (servers/deqa)",
    )

    def __init__(self, settings: DeQASettings | None = None) -> None:
        super().__init__(settings or DeQASettings())

    def example(self) -> tuple[NDArray[np.uint8], PromptRecord]:
        return np.full((512, 512, 3), 128, np.uint8), PromptRecord("a grey wall")

    def settings_served(self) -> dict[str, Any]:
        return {} if self.settings.model == MODEL else {"model": self.settings.model}
