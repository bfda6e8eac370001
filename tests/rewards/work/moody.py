"""Scorers that do as the prompt says: raise, hang, end, or score the brightness."""

import os
import time

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.rewards.settings import ScorerSettings

HANGS, SLOW = 60.0, 0.5


class Moody:
    name, version, tasks, grouped = "moody", 1, None, False
    metrics = (MetricInfo("mood", 0, 1), MetricInfo("other"))

    def __init__(self):
        self.calls = []
        self.failing = 0

    def score(self, images, records):
        prompts = [record.prompt for record in records]
        self.calls.append(prompts)
        if "hang" in prompts:
            time.sleep(HANGS)
        if "slow" in prompts:
            time.sleep(SLOW)
        if "end" in prompts:
            os._exit(3)
        if "raise" in prompts:
            raise ValueError("it says raise")
        if "often" in prompts or ("once" in prompts and not self.failing):
            self.failing += 1
            raise ConnectionError("the line is down")
        if "unsendable" in prompts:
            return [Scores({"mood": 0.0}, detail={"what": lambda: 0})]
        if "short" in prompts:
            return []
        return [
            Scores({"mood": float(image.mean() / 255), "other": 1.0}, detail={"pid": os.getpid()})
            for image in images
        ]

    def transient(self, error):
        return isinstance(error, ConnectionError)


class Together(Moody):
    grouped = True


class Far(Moody):
    """In a process of its own."""

    class Settings(ScorerSettings):
        refuses: bool = False
        low: float = 0.0

    workers = "processes"

    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def load(self):
        if self.settings.refuses:
            raise FlowOPDError("The scorer 'far' has no weights.")

    def self_check(self):
        good = self.settings.low == 0
        return [Finding("nothing", self.settings.low, "0", good)]
