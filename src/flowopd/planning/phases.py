"""The phases of a run, which need different amounts of memory."""

from enum import StrEnum


class Phase(StrEnum):
    ENCODE = "encode prompts"
    DRAW = "draw the rollout"
    TRAIN = "train"
    DECODE = "decode"
    STEP = "optimizer's step"
    PROBE = "probe"
    SAMPLE = "sample"
    """Of an evaluation, decoding included."""
