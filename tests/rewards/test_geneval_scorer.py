"""GenEval end to end: oracles on drawn pictures for the plumbing, tiny networks for the rest."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.composition import Box
from flowopd.rewards.geneval.decisions import judge_images
from flowopd.rewards.geneval.detections import Detection, box_of, crop
from flowopd.rewards.geneval.names import COLORS
from flowopd.rewards.geneval.scorer import GenEval, GenEvalSettings
from flowopd.tasks.prompts import PromptRecord
from tiny_clip import save_clip
from tiny_mask2former import save_mask2former

PAINTS = {"red": (220, 20, 20), "blue": (20, 40, 220), "green": (10, 160, 40)}
SHAPES = {"apple": "ellipse", "book": "rectangle", "kite": "polygon"}
GREY = 153
Thing = tuple[str, str, tuple[int, int, int, int]]


def drawn(things: Sequence[Thing], size: tuple[int, int] = (120, 90)) -> np.ndarray:
    """Things, as (class, colour, box), before a pattern in which every pixel differs."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    canvas = Image.fromarray(np.stack([columns, rows, columns ^ rows], -1).astype(np.uint8))
    for name, color, box in things:
        _paint(ImageDraw.Draw(canvas), name, box, PAINTS[color])
    return np.asarray(canvas)


def _paint(pen: Any, name: str, box: tuple[int, int, int, int], fill: Any) -> None:
    left, top, right, bottom = box
    if SHAPES[name] == "polygon":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill)
    else:
        getattr(pen, SHAPES[name])(box, fill=fill)


def mask_of(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    canvas = Image.new("1", size)
    _paint(ImageDraw.Draw(canvas), name, box, 1)
    return np.asarray(canvas)


class Oracle:
    """A detector that knows what was drawn."""

    def __init__(self, scenes: Sequence[Sequence[Thing]], size: tuple[int, int] = (120, 90)):
        self.scenes, self.size, self.calls = scenes, size, 0

    def __call__(self, images: np.ndarray) -> list[list[Detection] | None]:
        found: list[list[Detection] | None] = []
        for scene in self.scenes[self.calls : self.calls + len(images)]:
            masks = [(name, mask_of(name, box, self.size)) for name, _, box in scene]
            found.append([Detection(name, 0.97, box_of(mask), mask) for name, mask in masks])
        self.calls += len(images)
        return found


class Painter:
    """A classifier that looks up the commonest paint of a crop, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, np.ndarray]] = []

    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str | None]:
        pixels = [np.asarray(one) for one in crops]
        self.seen += zip(names, pixels, strict=True)
        shares = [
            {color: (one == paint).all(-1).mean() for color, paint in PAINTS.items()}
            for one in pixels
        ]
        return [max(share, key=lambda color: share[color]) for share in shares]


def record(tag: str, *include: dict[str, Any], **more: Any) -> PromptRecord:
    return PromptRecord("a prompt", "geneval", tag, {"include": list(include), **more})


def a(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


APPLE, BOOK, KITE = (10, 20, 39, 59), (70, 30, 99, 49), (45, 5, 60, 25)
SCENES: list[tuple[PromptRecord, list[Thing], tuple[int, float]]] = [
    (record("single_object", a("apple")), [("apple", "red", APPLE)], (1, 1)),
    (record("single_object", a("apple")), [("book", "red", BOOK)], (0, 0)),
    (
        record("two_object", a("apple"), a("book")),
        [("apple", "red", APPLE), ("book", "blue", BOOK)],
        (1, 1),
    ),
    (
        record("counting", a("kite", 2), exclude=[a("kite", 3)]),
        [("kite", "red", KITE), ("kite", "blue", (80, 5, 95, 25))],
        (1, 1),
    ),
    (record("counting", a("kite", 2), exclude=[a("kite", 3)]), [("kite", "red", KITE)], (0, 0.5)),
    (record("colors", a("apple", color="red")), [("apple", "red", APPLE)], (1, 1)),
    (record("colors", a("apple", color="red")), [("apple", "blue", APPLE)], (0, 0.5)),
    (
        record("position", a("book"), a("apple", position=["left of", 0])),
        [("apple", "red", APPLE), ("book", "red", BOOK)],
        (1, 1),
    ),
    (
        record("position", a("book"), a("apple", position=["right of", 0])),
        [("apple", "red", APPLE), ("book", "red", BOOK)],
        (0, 2 / 3),
    ),
    (
        record("color_attr", a("apple", color="green"), a("kite", color="blue")),
        [("apple", "green", APPLE), ("kite", "blue", KITE)],
        (1, 1),
    ),
    (
        record("color_attr", a("apple", color="green"), a("kite", color="blue")),
        [("apple", "blue", APPLE), ("kite", "green", KITE)],
        (0, 0.5),
    ),
]


class Drawn(GenEval):
    """The scorer with its two parts exchanged."""

    name = "drawn"

    def __init__(self, settings: GenEvalSettings | None = None) -> None:
        super().__init__(settings)
        self.painter = Painter()

    def make_detector(self) -> Oracle:
        return Oracle([things for _, things, _ in SCENES])

    def make_classifier(self) -> Painter:
        return self.painter


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_drawn_pictures_are_judged_by_what_was_drawn(batch_size: int) -> None:
    scorer = Drawn(GenEvalSettings(batch_size=batch_size))
    images = np.stack([drawn(things) for _, things, _ in SCENES])
    scores = scorer.score(images, [one for one, _, _ in SCENES])
    for score, (_, _, (correct, soft)) in zip(scores, SCENES, strict=True):
        assert score.values["geneval"] == score.values["geneval_strict"] == correct
        assert score.values["geneval_soft"] == pytest.approx(soft)
        assert bool(score.detail["wrong"]) != bool(correct)
    assert scores[5].detail["found"] == ["red apple at 10,20,40,60"]
    assert scores[0].detail["found"] == ["apple at 10,20,40,60"]  # nobody asked for its colour


def test_only_what_is_asked_for_is_looked_at_for_its_color() -> None:
    scorer = Drawn()
    images = np.stack([drawn(things) for _, things, _ in SCENES])
    scorer.score(images, [one for one, _, _ in SCENES])
    assert [name for name, _ in scorer.painter.seen] == ["apple"] * 3 + ["kite", "apple", "kite"]


@pytest.mark.parametrize(("name", "box"), [("apple", APPLE), ("book", BOOK), ("kite", KITE)])
def test_a_crop_is_grey_but_for_the_object_to_the_pixel(name, box) -> None:
    image, mask = drawn([(name, "red", box)]), mask_of(name, box, (120, 90))
    cut = np.asarray(crop(image, Detection(name, 0.9, box_of(mask), mask)))
    left, top, right, bottom = box
    assert cut.shape == (bottom - top + 1, right - left + 1, 3)
    inside = mask[top : bottom + 1, left : right + 1]
    assert (cut[inside] == PAINTS["red"]).all()
    assert (cut[~inside] == GREY).all()
    assert inside.any()


def test_a_crop_keeps_what_is_within_the_mask_whatever_it_is() -> None:
    image = drawn([])
    mask = np.zeros((90, 120), bool)
    mask[30:40, 50:70] = True
    mask[35, 60] = False
    cut = np.asarray(crop(image, Detection("bear", 0.9, box_of(mask), mask)))
    wanted = image[30:40, 50:70].copy()
    wanted[5, 10] = GREY
    assert (cut == wanted).all()


def test_without_a_mask_the_crop_is_the_box() -> None:
    image = drawn([])
    cut = np.asarray(crop(image, Detection("bear", 0.9, Box(4.4, 5.6, 20.5, 30.4))))
    assert (cut == image[6:30, 4:20]).all()  # rounded as PIL rounds, half to even


def test_a_box_of_nothing_is_a_pixel() -> None:
    assert crop(drawn([]), Detection("bear", 0.9, Box(4, 5, 4, 5))).size == (1, 1)


def test_two_pictures_that_share_a_detection_have_their_own_colors() -> None:
    one = Detection("apple", 0.9, Box(10, 20, 40, 60))
    images = np.stack([drawn([("apple", color, APPLE)]) for color in ("red", "blue")])
    asked = [record("colors", a("apple", color="red"))] * 2
    judged = judge_images(images, asked, lambda images: [[one]] * len(images), Painter())
    assert [each.verdict.correct for each in judged if each.verdict] == [True, False]


def test_a_part_that_fails_leaves_its_pictures_without_a_score() -> None:
    class Failing(Drawn):
        def make_detector(self) -> Any:
            oracle = super().make_detector()
            return lambda images: [None if i == 0 else f for i, f in enumerate(oracle(images))]

        def make_classifier(self) -> Any:
            return lambda crops, names: [None if name == "kite" else "red" for name in names]

    images = np.stack([drawn(things) for _, things, _ in SCENES])
    scores = Failing(GenEvalSettings(batch_size=100)).score(images, [one for one, _, _ in SCENES])
    for number, score in enumerate(scores):
        if number in (0, 9, 10):  # without detections, and with kites whose colours matter
            assert set(score.values.values()) == {None}
            assert score.reasons.keys() == score.values.keys()
            assert all("none" in reason for reason in score.reasons.values())
        else:
            assert None not in score.values.values()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("geneval")
    return {
        "name": "geneval",
        "detector": str(save_mask2former(folder / "detector")),
        "clip": str(save_clip(folder / "clip")),
        "short_side": 64,
    }


def noisy(count: int) -> np.ndarray:
    colors = np.random.default_rng(3).integers(0, 256, (count, 8, 8, 3))
    return colors.repeat(10, 1).repeat(10, 2).astype(np.uint8)


ASKED = [
    *(record("colors", a("baseball bat", color=color)) for color in COLORS[:3]),
    record("counting", a("baseball bat", 4), exclude=[a("baseball bat", 5)]),
    record("position", a("baseball bat"), a("fire hydrant", position=["above", 0])),
    record("two_object", a("parking meter"), a("bed")),
    record("single_object", a("baseball bat")),
]


def test_end_to_end_with_tiny_networks(models: dict[str, Any]) -> None:
    scorer = plugins.load_scorer(models)
    images = noisy(len(ASKED))
    scores = scorer.score(images, ASKED)
    for score in scores:
        assert 0 <= score.values["geneval_soft"] <= 1
        assert score.values["geneval_strict"] <= score.values["geneval"]
    assert sum(score.values["geneval"] for score in scores) > 0
    assert any(thing.split()[0] in COLORS for score in scores for thing in score.detail["found"])
    small = plugins.load_scorer({**models, "batch_size": 2}).score(images, ASKED)
    assert [one.values for one in small] == [one.values for one in scores]
    order = [3, 0, 6, 2, 5, 1, 4]
    again = scorer.score(images[order], [ASKED[i] for i in order])
    assert [one.values for one in again] == [scores[i].values for i in order]


def test_the_self_check_refuses_a_detector_that_knows_nothing(models: dict[str, Any]) -> None:
    drawings, nothing, balls = plugins.load_scorer(models).self_check()
    assert (drawings.value, drawings.good) == (0, False)
    assert drawings.what.startswith("drawings of a stop sign, a clock, a traffic light")
    assert (nothing.value, nothing.good) == (0, True)  # its scores are around a half
    assert (balls.value, balls.good) == (0, False)


def test_the_color_is_the_one_whose_sentences_are_nearest(models: dict[str, Any]) -> None:
    """By a computation with transformers alone: three templates, averaged, normalised."""
    from transformers import AutoTokenizer, CLIPModel

    from flowopd.rewards.geneval.colors import load_colors
    from flowopd.rewards.preparing import cropped

    folder = Path(models["clip"])
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    crops = [Image.fromarray(image[: 20 + 9 * i, :50]) for i, image in enumerate(noisy(7))]
    names = ["apple", "baseball bat", "apple", "tv", "tv", "apple", "baseball bat"]
    wanted = []
    for one, name in zip(crops, names, strict=True):
        texts = [
            text.format(color, name)
            for color in COLORS
            for text in (
                "a photo of a {} {}",
                "a photo of a {}-colored {}",
                "a photo of a {} object",
            )
        ]
        tokens = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
        with torch.inference_mode():
            output = model(
                pixel_values=cropped(np.asarray(one)[None], 32), input_ids=tokens.input_ids
            )
        classes = output.text_embeds.view(10, 3, -1).mean(1)
        classes /= classes.norm(dim=-1, keepdim=True)
        wanted.append(COLORS[int((classes @ output.image_embeds[0]).argmax())])
    cpu = torch.device("cpu")
    for batch_size in (1, 3, 16):
        assert load_colors(folder, folder, cpu, batch_size)(crops, names) == wanted
    assert len(set(wanted)) > 1


def test_a_color_that_is_no_number_is_none() -> None:
    from flowopd.rewards.geneval.colors import averaged, nearest

    colors = averaged(torch.eye(10)[:, None].repeat(1, 3, 1))
    assert torch.equal(colors, torch.eye(10))
    assert nearest(torch.eye(10)[4], colors) == "blue"
    assert nearest(torch.full((10,), torch.nan), colors) is None


def test_making_one_needs_no_weights_and_missing_ones_are_named() -> None:
    scorer = plugins.load_scorer("geneval")
    assert [metric.name for metric in scorer.metrics] == [
        "geneval",
        "geneval_strict",
        "geneval_soft",
    ]
    assert all(metric.strata for metric in scorer.metrics)
    with pytest.raises(FlowOPDError, match=r"'geneval' has no detector: facebook/mask2former"):
        scorer.load()


def test_a_record_that_cannot_be_scored_is_refused_beforehand() -> None:
    with pytest.raises(FlowOPDError, match="its tag is 'counted'"):
        plugins.load_scorer("geneval").check(record("counted", a("apple")))


def test_a_closed_one_holds_no_networks_and_loads_again(models: dict[str, Any]) -> None:
    scorer = plugins.load_scorer({"name": "geneval", **models})
    scorer.load()
    detector = weakref.ref(scorer._parts[0])
    scorer.close()
    gc.collect()
    assert detector() is None
    scorer.load()


def test_the_models_that_it_says_are_those_of_its_settings(models: dict[str, Any]) -> None:
    published = plugins.load_scorer("geneval").about
    assert published.models == (
        "facebook/mask2former-swin-small-coco-instance",
        "openai/clip-vit-large-patch14",
    )
    assert published.licence.startswith("MIT")
    own = plugins.load_scorer(models).about
    assert own.models == ("detector", "clip")
    assert own.licence == "that of the models"


def test_settings_that_change_the_number_are_its_identity(models: dict[str, Any]) -> None:
    assert GenEvalSettings(device="cpu", batch_size=3).identity() == {}
    assert GenEvalSettings(short_side=384).identity() == {"short_side": 384}
    assert "sha256" in GenEvalSettings(detector=models["detector"]).identity()["detector"]
