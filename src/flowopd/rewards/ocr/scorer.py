"""The scorer `ocr`: whether the text that a prompt asks for can be read in its picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowopd.rewards.ocr.drawn import drawn_text
from flowopd.rewards.ocr.engine import DETECTION, RECOGNITION, engine
from flowopd.rewards.ocr.text import ocr_score, target_of
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

Image = NDArray[np.uint8]


class OcrScorer:
    """`ocr` is 1 when the text is there, whatever else is, and falls with the edits it lacks."""

    name = "ocr"
    version = 1
    metrics = (MetricInfo("ocr", 0, 1),)
    tasks = frozenset({"ocr"})
    grouped = False
    workers = "processes"
    about = About(
        models=(f"rapidocr: {DETECTION}", f"rapidocr: {RECOGNITION}"),
        licence="Apache-2.0 (rapidocr, PP-OCR)",
        cost="0.3 s a picture of 512×512 on one CPU core; 0.3 GB in each process",
    )

    def load(self) -> None:
        engine()

    def check(self, record: PromptRecord) -> None:
        target_of(record)

    def score(self, images: Image, records: Sequence[PromptRecord]) -> list[Scores]:
        return [self._one(image, record) for image, record in zip(images, records, strict=True)]

    def self_check(self) -> list[Finding]:
        """Text that is there, with and without a letter too many, and text that is not."""
        asked = PromptRecord('a sign that says "Spring Sale 2024"', "ocr")
        expected = (
            ("the text that is asked for", "Spring Sale 2024", 1.0, 1.0),
            ("the text with one letter wrong", "Spring Sele 2024", 0.9, 0.95),
            ("another text", "Quiet please", 0.0, 0.4),
            ("no text", "", 0.0, 0.0),
        )
        findings = []
        for what, text, low, high in expected:
            score = self._one(drawn_text(text), asked)
            value = score.values["ocr"]
            good = value is not None and low <= value <= high
            wanted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            findings.append(Finding(what, value, wanted, good))
        return findings

    def example(self) -> tuple[Image, PromptRecord]:
        record = PromptRecord('a sign that says "Spring Sale 2024"', "ocr")
        return drawn_text(target_of(record)), record

    def _one(self, image: Image, record: PromptRecord) -> Scores:
        lines = engine().read(image)
        score = ocr_score("".join(lines), target_of(record))
        return Scores({"ocr": score}, detail={"read": lines})
