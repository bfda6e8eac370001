"""The scorer `geneval`: Mask2Former finds objects, CLIP names their colours, GenEval judges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowopd.devices import pick_device
from flowopd.rewards import model_files
from flowopd.rewards.composition import Found
from flowopd.rewards.geneval import drawn
from flowopd.rewards.geneval.decisions import (
    ColorClassifier,
    Detector,
    Judgement,
    judge_images,
)
from flowopd.rewards.geneval.metadata import check_metadata
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.rewards.settings import ModelPlace, ScorerSettings
from flowopd.tasks.prompts import PromptRecord

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"


class GenEvalSettings(ScorerSettings):
    batch_size: int = Field(4, ge=1)
    detector: ModelPlace = DETECTOR
    clip: ModelPlace = CLIP
    short_side: int = Field(800, ge=32)
    """Pixels of a picture's shorter side as the detector sees it."""


class GenEval:
    """`geneval` is GenEval's own rule, 0 or 1, for tables: at least as many as asked for.

    `geneval_strict` wants exactly as many, and `geneval_soft` is its partial credit, for training.
    Another detector or classifier of colours is a subclass with a `make_detector` or
    `make_classifier` of its own.
    """

    Settings = GenEvalSettings
    name = "geneval"
    version = 1
    metrics: tuple[MetricInfo, ...] = (
        MetricInfo("geneval", 0, 1, strata=True),
        MetricInfo("geneval_strict", 0, 1, strata=True),
        MetricInfo("geneval_soft", 0, 1, strata=True),
    )
    tasks: frozenset[str] | None = frozenset({"geneval"})
    grouped = False

    def __init__(self, settings: GenEvalSettings | None = None) -> None:
        self.settings = settings or GenEvalSettings()
        self._parts: tuple[Detector, ColorClassifier] | None = None

    @property
    def about(self) -> About:
        licence = "MIT (GenEval, Mask2Former, CLIP)"
        cost = (
            "2.0 GB to fetch, 2.0 GB of memory and 0.9 GB for each picture of a batch, "
            "0.44 TFLOP a picture and 0.16 for each object whose colour is asked for"
        )
        return model_files.about(self.settings, ("{detector}", "{clip}"), licence, cost)

    def load(self) -> None:
        self._ready()

    def close(self) -> None:
        """Give the networks' memory back."""
        self._parts = None

    def check(self, record: PromptRecord) -> None:
        check_metadata(record)

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        detector, classifier = self._ready()
        found: list[Judgement] = []
        for start in range(0, len(records), self.settings.batch_size):
            batch = slice(start, start + self.settings.batch_size)
            found += judge_images(images[batch], records[batch], detector, classifier)
        return [self._scores(one) for one in found]

    def self_check(self) -> list[Finding]:
        detector, classifier = self._ready()
        known = drawn.known(detector)
        return [
            drawn.check_drawings(known),
            *drawn.check_scores(self, known[:1]),
            drawn.check_nothing(detector),
            drawn.check_colors(classifier),
        ]

    def example(self) -> tuple[NDArray[np.uint8], PromptRecord]:
        return drawn.example()

    def make_detector(self) -> Detector:
        from flowopd.rewards.geneval.mask2former import load_mask2former

        place = self.settings.detector
        folder = model_files.network_folder(self.name, "detector", place)
        device = pick_device(self.settings.device)
        return load_mask2former(folder, place, device, self.settings.short_side)

    def make_classifier(self) -> ColorClassifier:
        from flowopd.rewards.geneval.colors import load_colors

        place = self.settings.clip
        folder = model_files.network_folder(self.name, "clip", place)
        tokenizer = model_files.tokenizer_folder(self.name, "clip", place)
        device = pick_device(self.settings.device)
        return load_colors(folder, tokenizer, device, self.settings.batch_size)

    def _ready(self) -> tuple[Detector, ColorClassifier]:
        if self._parts is None:
            self._parts = self.make_detector(), self.make_classifier()
        return self._parts

    def _scores(self, one: Judgement) -> Scores:
        detail: dict[str, Any] = {"found": [_in_words(thing) for thing in one.found]}
        if one.verdict is None:
            names = [metric.name for metric in self.metrics]
            return Scores(dict.fromkeys(names), dict.fromkeys(names, one.reason), detail)
        values: dict[str, float | None] = {
            "geneval": float(one.verdict.correct),
            "geneval_strict": float(one.verdict.strict),
            "geneval_soft": one.verdict.soft,
        }
        return Scores(values, detail={**detail, "wrong": list(one.verdict.reasons)})


def _in_words(thing: Found) -> str:
    """As `red cup at 10,20,110,140`, pixels from the left and top."""
    box = ",".join(f"{side:.0f}" for side in vars(thing.box).values())
    return f"{thing.color + ' ' if thing.color else ''}{thing.name} at {box}"
