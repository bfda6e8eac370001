"""From detections to verdicts: what was found, in what colour, and whether it was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowopd.rewards.composition import Found, Verdict, judge
from flowopd.rewards.geneval.detections import Detection, crop, kept
from flowopd.tasks.prompts import PromptRecord


class Detector(Protocol):
    """Finds objects of COCO's classes, by GenEval's names."""

    def __call__(self, images: NDArray[np.uint8]) -> list[list[Detection] | None]:
        """The objects of each of the images [B, H, W, 3]; None for one that it failed on.

        Those with a score of up to 0.3 may be left out.
        """
        ...


class ColorClassifier(Protocol):
    """Tells the colours of single objects."""

    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str | None]:
        """One of GenEval's ten colours for each object, whose class is beside it in `names`.

        None for one that it failed on.
        """
        ...


@dataclass(frozen=True)
class Judgement:
    """What was found in an image, and what GenEval makes of it; no verdict for a reason."""

    found: tuple[Found, ...] = ()
    verdict: Verdict | None = None
    reason: str = ""


def judge_images(
    images: NDArray[np.uint8],
    records: Sequence[PromptRecord],
    detector: Detector,
    classifier: ColorClassifier,
) -> list[Judgement]:
    """What is found in each of the images [B, H, W, 3], judged by its record."""
    detections = detector(images)
    seen = [kept(one or (), record.tag) for one, record in zip(detections, records, strict=True)]
    asked = [
        (number, name, place)
        for number, record in enumerate(records)
        for name, count in to_color(seen[number], record.meta).items()
        for place in range(count)
    ]
    crops = [crop(images[number], seen[number][name][place]) for number, name, place in asked]
    colors = classifier(crops, [name for _, name, _ in asked]) if asked else []
    color_of = dict(zip(asked, colors, strict=True))
    failed = {number for (number, _, _), color in color_of.items() if color is None}
    judgements = []
    for number, record in enumerate(records):
        found = tuple(
            Found(name, one.box, color_of.get((number, name, place)))
            for name, group in seen[number].items()
            for place, one in enumerate(group)
        )
        if detections[number] is None:
            judgements.append(Judgement(reason="the detector gave numbers that are none"))
        elif number in failed:
            judgements.append(Judgement(found, reason="the colours' numbers are none"))
        else:
            judgements.append(Judgement(found, judge(found, record.meta)))
    return judgements


def to_color(
    by_class: Mapping[str, Sequence[Detection]], requirement: Mapping[str, Any]
) -> dict[str, int]:
    """Of how many of a class, the surest, the colour decides: where there are as many as asked."""
    numbers: dict[str, int] = {}
    for wanted in requirement["include"]:
        name, count = wanted["class"], wanted["count"]
        if "color" in wanted and len(by_class.get(name, ())) >= count:
            numbers[name] = max(numbers.get(name, 0), count)
    return numbers
