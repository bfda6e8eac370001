"""Mask2Former's instances: by hand, and against transformers' own reading of its outputs."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.rewards.geneval.detections import box_of
from flowopd.rewards.geneval.mask2former import (
    DIVISOR,
    MEAN,
    STD,
    Mask2Former,
    Sizes,
    instances,
    load_mask2former,
    prepare,
    seen_size,
)
from flowopd.rewards.geneval.names import NAMES
from tiny_mask2former import save_mask2former, tiny_mask2former

SAME = Sizes((2, 2), (2, 2), (2, 2))


def logits_of(chances: list[list[float]]) -> torch.Tensor:
    """Such that their softmax is these rows."""
    return torch.tensor(chances).log()


def odds(chance: float) -> float:
    return math.log(chance / (1 - chance))


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((512, 1024), (667, 1333)),  # 1333 is the most
        ((100, 1000), (133, 1333)),
    ],
)
def test_the_size_at_which_a_picture_is_seen(size, seen) -> None:
    assert seen_size(*size, 800) == seen


def test_a_picture_as_the_network_takes_it() -> None:
    images = np.zeros((2, 30, 40, 3), np.uint8)
    images[1] = (255, 51, 0)
    pixels, seen = prepare(images, 60, "cpu")
    assert seen == (60, 80)
    assert pixels.shape == (2, 3, 64, 96)
    assert not pixels[:, :, 60:].any()
    assert not pixels[:, :, :, 80:].any()
    wanted = [(value - m) / s for value, m, s in zip((1.0, 0.2, 0.0), MEAN, STD, strict=True)]
    assert pixels[1, :, 30, 40].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_score_is_the_classs_chance_by_the_mean_chance_within_the_mask() -> None:
    classes = logits_of([[0.8, 0.1, 0.1], [0.35, 0.05, 0.6], [0.2, 0.2, 0.6]])
    masks = torch.tensor(
        [
            [[odds(0.9), odds(0.7)], [-1.0, -2.0]],
            [[odds(0.9), -1.0], [-1.0, -1.0]],  # 0.9 · 0.35 counts,
            [[9.0, 9.0], [9.0, 9.0]],  # 0.2 does not
        ]
    )
    first, second = instances(classes, masks, SAME)
    assert first.label == second.label == 0
    assert first.score == pytest.approx(0.8 * 0.8, abs=1e-6)
    assert second.score == pytest.approx(0.35 * 0.9, abs=1e-6)
    assert first.mask.tolist() == [[True, True], [False, False]]
    assert second.mask.tolist() == [[True, False], [False, False]]


def test_a_query_can_be_two_classes() -> None:
    found = instances(logits_of([[0.45, 0.45, 0.1]]), torch.full((1, 2, 2), odds(0.9)), SAME)
    assert sorted(one.label for one in found) == [0, 1]
    assert [one.score for one in found] == pytest.approx([0.405, 0.405], abs=1e-6)


def test_what_is_only_in_the_filling_is_not_there() -> None:
    masks = torch.full((1, 4, 4), -5.0)
    masks[:, 2:] = 5.0
    chances = logits_of([[0.9, 0.1]])
    assert instances(chances, masks, Sizes((4, 4), (2, 4), (2, 4))) == []
    assert len(instances(chances, masks, Sizes((4, 4), (4, 4), (4, 4)))) == 1


def test_no_numbers_are_no_instances_and_not_nothing() -> None:
    chances, masks = logits_of([[0.9, 0.1]]), torch.ones(1, 2, 2)
    assert instances(chances * math.nan, masks, SAME) is None
    assert instances(chances, masks / 0, SAME) is None


def test_a_box_ends_after_the_last_pixel() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2, 3] = mask[4, 6] = True
    box = box_of(mask)
    assert (box.left, box.top, box.right, box.bottom) == (3, 2, 7, 5)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return tiny_mask2former()


def blocks(seed: int, count: int, size: int) -> np.ndarray:
    """Pictures of 8 by 8 random colours."""
    colors = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3))
    return colors.repeat(size // 8, 1).repeat(size // 8, 2).astype(np.uint8)


ROUNDED = 16
"""Pixels of 147,456."""


def test_equals_transformers_own_reading(network: torch.nn.Module) -> None:
    """At 384 by 384, the size to which transformers' reading always goes, and without resizing."""
    import transformers

    named = "Mask2FormerImageProcessor"
    processor = getattr(transformers, f"{named}Pil", None) or getattr(transformers, named)
    processor = processor(size={"height": 384, "width": 384}, do_resize=False, ignore_index=255)
    images = blocks(0, 2, 384)
    theirs = processor(
        images=list(images), input_data_format="channels_last", return_tensors="pt"
    ).pixel_values
    ours, _ = prepare(images, 384, "cpu")
    assert torch.allclose(ours, theirs, atol=1e-5)
    with torch.inference_mode():
        output = network(pixel_values=theirs)
    read = processor.post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    size = (384, 384)
    each = zip(output.class_queries_logits, output.masks_queries_logits, read, strict=True)
    seen = 0
    for classes, masks, wanted in each:
        found = instances(classes, masks, Sizes(size, size, size))
        segments = wanted["segments_info"]
        assert sorted(one.label for one in found) == sorted(one["label_id"] for one in segments)
        scores = sorted(one["score"] for one in segments)
        assert sorted(one.score for one in found) == pytest.approx(scores, abs=1e-5)
        their_masks = [mask.numpy() > 0 for mask in wanted["segmentation"]]
        for one in found:
            # A pixel whose value is 0 but for rounding may fall on either side.
            assert min(int((one.mask != mask).sum()) for mask in their_masks) <= ROUNDED
        seen += len(found)
    assert seen > 2


def test_a_picture_is_seen_alone_as_among_others(network: torch.nn.Module) -> None:
    detector = Mask2Former(network, "tiny", 64)
    images = blocks(1, 3, 96)
    together = detector(images)
    assert any(together)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector(image[None])
        assert [one.name for one in alone] == [one.name for one in found]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-5)


class SeesACorner:
    """A network that is sure of one thing, in the first third of the picture both ways."""

    config = SimpleNamespace(id2label=dict(enumerate(NAMES)))
    device = torch.device("cpu")

    def __init__(self, seen_hw: tuple[int, int]) -> None:
        self.seen_hw = seen_hw

    def __call__(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        height, width = (side // 4 for side in pixel_values.shape[-2:])
        rows, columns = (side // 4 for side in self.seen_hw)
        masks = torch.full((len(pixel_values), 1, height, width), -9.0)
        masks[..., : rows // 3, : columns // 3] = 9.0
        classes = torch.full((len(pixel_values), 1, len(NAMES) + 1), -9.0)
        classes[..., NAMES.index("bear")] = 9.0
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.mark.parametrize(
    ("picture", "seen"), [((80, 120), (72, 108)), ((120, 80), (108, 72)), ((90, 90), (72, 72))]
)
def test_what_a_picture_is_filled_up_with_moves_nothing(picture, seen) -> None:
    assert any(side % DIVISOR for side in seen)
    (found,) = Mask2Former(SeesACorner(seen), "sees a corner", 72)(np.zeros((1, *picture, 3), "u1"))
    (one,) = found
    assert one.name == "bear"
    assert one.mask.shape == picture
    assert (one.box.left, one.box.top) == (0, 0)
    assert one.box.right == pytest.approx(picture[1] / 3, abs=1)
    assert one.box.bottom == pytest.approx(picture[0] / 3, abs=1)


def test_a_saved_detector_is_the_same(network: torch.nn.Module, tmp_path: Path) -> None:
    loaded = load_mask2former(save_mask2former(tmp_path), "tiny", torch.device("cpu"), 64)
    images = blocks(1, 1, 96)
    (ours,), (theirs,) = Mask2Former(network, "tiny", 64)(images), loaded(images)
    assert [(one.name, one.score, one.box) for one in ours] == [
        (one.name, one.score, one.box) for one in theirs
    ]


def test_an_incomplete_detector_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_mask2former(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["class_predictor.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FlowOPDError, match=r"lacks class_predictor\.bias"):
        load_mask2former(tmp_path, "tiny", torch.device("cpu"), 64)


def test_a_detector_saved_in_half_precision_works_in_full(tmp_path: Path) -> None:
    tiny_mask2former().half().save_pretrained(tmp_path)
    loaded = load_mask2former(tmp_path, "tiny", torch.device("cpu"), 64)
    rounded = Mask2Former(tiny_mask2former().half().float(), "tiny", 64)
    images = blocks(1, 1, 96)
    (found,), (wanted,) = loaded(images), rounded(images)
    assert len(found) == len(wanted) > 0
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-6)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def pickle_it(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"class_predictor.bias": Harmful(folder / "ran")}, folder / "pytorch_model.bin")


def cut_it_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (pickle_it, r"pytorch_model\.bin holds more than tensors.*is not run"),
        (cut_it_short, r"model\.safetensors cannot be read: .*Download them again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights; it should hold"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "mask'),
            r"detector tiny has a config\.json that cannot be read: .*Download it again",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "detector tiny is a None"),
    ],
)
def test_a_spoilt_detector_is_refused_in_a_sentence(
    spoil: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    spoil(save_mask2former(tmp_path))
    with pytest.raises(FlowOPDError, match=sentence) as refused:
        load_mask2former(tmp_path, "tiny", torch.device("cpu"), 64)
    assert "weights_only=False" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_detector_is_the_same(network: torch.nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = save_mask2former(tmp_path) / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    loaded = load_mask2former(tmp_path, "tiny", torch.device("cpu"), 64)
    images = blocks(1, 1, 96)
    (ours,), (theirs,) = Mask2Former(network, "tiny", 64)(images), loaded(images)
    assert [one.score for one in ours] == [one.score for one in theirs]


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(FlowOPDError, match="org/detr is a 'detr', and should be a 'mask2former'"):
        load_mask2former(tmp_path, "org/detr", torch.device("cpu"), 64)
