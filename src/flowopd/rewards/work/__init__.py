"""Scorers at work: beside the process that draws, tried again, given up, and never waited for."""

from flowopd.rewards.work.calls import Call, Failed
from flowopd.rewards.work.jury import Jury

__all__ = ["Call", "Failed", "Jury"]
