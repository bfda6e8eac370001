"""What GenEval calls things: the 80 classes of COCO in COCO's order, colours, and tags."""

from collections.abc import Mapping

from flowopd.errors import FlowOPDError

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell phone,
microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
NAMES = tuple(" ".join(name.split()) for name in _NAMES.split(","))
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# Where COCO's own names, and those of models trained on it, are not GenEval's.
OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
    "doughnut": "donut",
    "cellphone": "cell phone",
}


def geneval_name(label: str) -> str | None:
    """GenEval's name of a class that a model calls ``label``; None when it is no class of COCO."""
    plain = " ".join(label.lower().replace("_", " ").split())
    name = OTHER_NAMES.get(plain, plain)
    return name if name in NAMES else None


def names_of(labels: Mapping[int, str], model: str) -> dict[int, str]:
    """The classes of a detector by GenEval's names; those that GenEval does not know are left out.

    A detector without names (LABEL_0, …) of 80 classes has them in COCO's order. One that does
    not know all 80 is refused: what it cannot see would count as not being there.
    """
    found = {index: name for index, label in labels.items() if (name := geneval_name(label))}
    nameless = all(label.upper() == f"LABEL_{index}" for index, label in labels.items())
    if nameless and len(labels) == len(NAMES):
        found = dict(enumerate(NAMES))
    missing = [name for name in NAMES if name not in found.values()]
    if missing:
        raise FlowOPDError(
            f"The detector {model} does not know GenEval's class {missing[0]!r} ({len(missing)} "
            "of 80 are missing); name one that was trained on COCO's 80 classes."
        )
    return found
