"""What reads images: scorers and the records that they return."""

from flowopd.rewards.scorer import MetricInfo, Scorer, Scores, applies

__all__ = ["MetricInfo", "Scorer", "Scores", "applies"]
