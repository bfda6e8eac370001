"""Drawn pictures for the self-check, of things that COCO has: signs, lamps, dials, and balls."""

from collections.abc import Callable, Sequence
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flowopd.rewards.composition import Box
from flowopd.rewards.geneval.decisions import ColorClassifier, Detector
from flowopd.rewards.geneval.detections import (
    BACKGROUND,
    COUNTING_THRESHOLD,
    THRESHOLD,
    Detection,
)
from flowopd.rewards.scorer import Finding, Scorer
from flowopd.tasks.prompts import PromptRecord

SIDE = 512
SKY, GROUND = (168, 200, 232), (120, 132, 96)
PLACE = Box(136, 96, 376, 336)
BALL = "sports ball"
PAINTS = {"red": "#d81818", "green": "#12962c", "blue": "#1438d2", "yellow": "#f5dc14"}
ENOUGH_COLORS = 3
LEAST_OVERLAP = 0.3  # a lamp is narrower than the place, and may be seen with its post
CLEARLY = 0.1  # by how much surer a drawing is seen for what it is than for another
ABSENT = "zebra"

Pen = ImageDraw.ImageDraw


def known(detector: Detector) -> list[str]:
    """The drawings that a detector sees for what they are, where they are, the surest first.

    It has to be clearly surer of that than of any other drawing there, and than of that in any
    other drawing.
    """
    names = list(DRAWINGS)
    images = np.stack([picture(draw) for draw in DRAWINGS.values()])
    # What is drawn, by what it is seen as.
    sure = np.array([[_sure(found, name) for name in names] for found in detector(images)])
    right = sure.diagonal()
    wrong = sure * (1 - np.eye(len(names)))
    clearly = right - np.maximum(wrong.max(0), wrong.max(1)) >= CLEARLY
    seen = np.flatnonzero((right > THRESHOLD) & clearly)
    return [names[i] for i in sorted(seen, key=lambda i: -right[i])]


def check_drawings(known: Sequence[str]) -> Finding:
    """Whether at least one of three drawings is seen for what it is, by `known`.

    A detector that sees nothing, somewhere else, or the same everywhere would score every picture
    alike.
    """
    what = f"drawings of a {', a '.join(DRAWINGS)}: how many are told from each other"
    return Finding(what, float(len(known)), f"1 to {len(DRAWINGS)}", len(known) >= 1)


def check_scores(scorer: Scorer, known: Sequence[str]) -> list[Finding]:
    """Whether drawings that the detector knows score by their own names, and by another not."""
    findings = []
    for name in known:
        images = np.stack([picture(DRAWINGS[name])] * 2)
        scores = scorer.score(images, [_asking_for(name), _asking_for(ABSENT)])
        right, wrong = (score.values["geneval"] for score in scores)
        findings += [
            Finding(f"geneval of a drawn {name}", right, "1", right == 1),
            Finding(f"geneval of the same, where a {ABSENT} is asked for", wrong, "0", wrong == 0),
        ]
    return findings


def check_nothing(detector: Detector) -> Finding:
    """Whether a detector sees nothing for sure where there is nothing."""
    (found,) = detector(np.full((1, SIDE, SIDE, 3), 153, np.uint8))
    sure = [one for one in found or () if one.score > COUNTING_THRESHOLD]
    good = found is not None and not sure
    return Finding("objects in a grey picture", float(len(sure)), "0", good)


def check_colors(classifier: ColorClassifier) -> Finding:
    """Whether balls have the colours that they are painted in."""
    named = classifier([ball(paint) for paint in PAINTS.values()], [BALL] * len(PAINTS))
    right = sum(name == color for name, color in zip(named, PAINTS, strict=True))
    what = f"balls in {', '.join(PAINTS)}: how many are named so"
    good = right >= ENOUGH_COLORS
    return Finding(what, float(right), f"{ENOUGH_COLORS} to {len(PAINTS)}", good)


def example() -> tuple[NDArray[np.uint8], PromptRecord]:
    meta = {"include": [{"class": "stop sign", "count": 1, "color": "red"}]}
    record = PromptRecord("a photo of a red stop sign", "geneval", "colors", meta)
    return picture(DRAWINGS["stop sign"]), record


def picture(draw: Callable[[Pen], None]) -> NDArray[np.uint8]:
    """A drawing in PLACE, before sky and ground: [512, 512, 3]."""
    canvas = Image.new("RGB", (SIDE, SIDE), SKY)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 400, SIDE, SIDE), fill=GROUND)
    draw(pen)
    return np.asarray(canvas, dtype=np.uint8)


def ball(paint: str, side: int = 200) -> Image.Image:
    """A disc on the grey that is around every object whose colour is asked for."""
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    ImageDraw.Draw(canvas).ellipse((0, 0, side - 1, side - 1), fill=paint)
    return canvas


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share, by that of both together."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(width, 0) * max(height, 0)
    return shared / (a.size[0] * a.size[1] + b.size[0] * b.size[1] - shared)


def _sure(found: Sequence[Detection] | None, name: str) -> float:
    """The highest score of a class in the place."""
    scores = [
        one.score
        for one in found or ()
        if one.name == name and overlap(one.box, PLACE) >= LEAST_OVERLAP
    ]
    return max(scores, default=0.0)


def _asking_for(name: str) -> PromptRecord:
    meta = {"include": [{"class": name, "count": 1}]}
    return PromptRecord(f"a photo of a {name}", "geneval", "single_object", meta)


def _stop_sign(pen: Pen) -> None:
    (x, y), half = PLACE.center, PLACE.size[0] / 2
    pen.rectangle((x - 7, PLACE.bottom, x + 7, SIDE - 60), fill=(110, 112, 116))
    for color, radius in (("white", 1.08), ((190, 20, 28), 1.02)):
        corners = [pi / 8 + i * pi / 4 for i in range(8)]
        pen.polygon(
            [(x + half * radius * cos(a), y + half * radius * sin(a)) for a in corners], fill=color
        )
    font = ImageFont.load_default(80)
    pen.text((x, y), "STOP", font=font, fill="white", anchor="mm", stroke_width=3)


def _clock(pen: Pen) -> None:
    (x, y), half = PLACE.center, PLACE.size[0] / 2
    pen.ellipse((PLACE.left, PLACE.top, PLACE.right, PLACE.bottom), fill=(40, 36, 34))
    pen.ellipse((x - 106, y - 106, x + 106, y + 106), fill=(248, 246, 238))
    for hour in range(1, 13):
        angle = hour * pi / 6
        place = (x + 0.72 * half * sin(angle), y - 0.72 * half * cos(angle))
        font = ImageFont.load_default(26)
        pen.text(place, str(hour), font=font, fill="black", anchor="mm", stroke_width=1)
    for angle, length, width in ((-pi / 3, 52, 9), (pi / 3, 78, 6)):
        tip = (x + length * sin(angle), y - length * cos(angle))
        pen.line(((x, y), tip), fill="black", width=width)
    pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill="black")


def _traffic_light(pen: Pen) -> None:
    x, _ = PLACE.center
    pen.rectangle((x - 9, PLACE.bottom, x + 9, SIDE), fill=(70, 72, 74))
    pen.rounded_rectangle((x - 62, PLACE.top, x + 62, PLACE.bottom), 16, fill=(26, 28, 30))
    lamps = ((230, 30, 24), (86, 76, 22), (20, 70, 38))
    for number, color in enumerate(lamps):
        y = PLACE.top + 42 + 78 * number
        pen.ellipse((x - 32, y - 32, x + 32, y + 32), fill=color)


DRAWINGS = {"stop sign": _stop_sign, "clock": _clock, "traffic light": _traffic_light}
