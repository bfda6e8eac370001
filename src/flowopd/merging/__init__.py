"""Combining LoRA adapters into one, and measuring what was combined.

What is meant is always dW = sum_i w_i s_i B_i A_i, layer by layer.
"""

from flowopd.merging.checks import check_merge, check_weights
from flowopd.merging.config import MergeConfig, Method
from flowopd.merging.merged import RECORD, Merged, merge

__all__ = [
    "RECORD",
    "MergeConfig",
    "Merged",
    "Method",
    "check_merge",
    "check_weights",
    "merge",
]
