"""What reads images: scorers and the records that they return."""

from flowopd.rewards.scorer import (
    About,
    Finding,
    MetricInfo,
    Scorer,
    Scores,
    UnavailableError,
    applies,
)

__all__ = [
    "About",
    "Finding",
    "MetricInfo",
    "Scorer",
    "Scores",
    "UnavailableError",
    "applies",
]
