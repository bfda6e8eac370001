"""Pictures as networks take them, by pictures whose pixels can be told apart."""

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from pair_pictures import pictures

from flowopd.rewards.preparing import MEAN, STD, cropped, padded

BLACK = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]


def columns(height: int, width: int) -> NDArray[np.uint8]:
    """The number of its column in every pixel: [1, height, width, 3]."""
    row = np.arange(width, dtype=np.uint8)
    return np.broadcast_to(row[None, None, :, None], (1, height, width, 3)).copy()


def bytes_of(pixels: torch.Tensor) -> NDArray[np.float64]:
    """Back to 0–255: [B, 3, H, W]."""
    mean, std = (np.array(three)[:, None, None] for three in (MEAN, STD))
    return 255 * (pixels.double().numpy() * std + mean)


@pytest.mark.parametrize("prepare", [cropped, padded])
def test_a_picture_of_the_right_size_is_only_normalised(prepare) -> None:
    images = pictures(3, 16, 16)
    pixels = prepare(images, 16)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(bytes_of(pixels), images.transpose(0, 3, 1, 2), atol=1e-4)


@pytest.mark.parametrize(("width", "first"), [(8, 2), (7, 2), (5, 0), (9, 2), (4, 0)])
def test_the_middle_is_cut_out(width: int, first: int) -> None:
    """A half is rounded to the even number, as torchvision does."""
    found = bytes_of(cropped(columns(4, width), 4))
    np.testing.assert_allclose(found[0, 0, 0], np.arange(first, first + 4), atol=1e-4)


@pytest.mark.parametrize(("width", "before"), [(8, 0), (6, 1), (5, 1), (4, 2)])
def test_black_is_put_beside(width: int, before: int) -> None:
    """An odd column goes to the right."""
    pixels = padded(columns(8, width), 8)
    assert pixels.shape == (1, 3, 8, 8)
    found = bytes_of(pixels)[0, 0, 0]
    np.testing.assert_allclose(found[before : before + width], np.arange(width), atol=1e-4)
    for column in (*range(before), *range(before + width, 8)):
        np.testing.assert_allclose(pixels[0, :, 3, column], BLACK, atol=1e-6)


def test_black_is_put_above_and_below() -> None:
    found = bytes_of(padded(columns(3, 8), 8))[0, 0, :, 7]
    np.testing.assert_allclose(found, [0, 0, 7, 7, 7, 0, 0, 0], atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (20, 20), (64, 96), (100, 50)])
def test_cropping_is_that_of_transformers(shape: tuple[int, int]) -> None:
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    images = pictures(2, *shape)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    expected = kind(**sizes)(images=list(images), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(cropped(images, 32), expected, atol=1e-5)


def test_one_colour_stays_one_colour() -> None:
    images = np.full((1, 50, 70, 3), 77, np.uint8)
    np.testing.assert_allclose(bytes_of(cropped(images, 16)), 77, atol=1e-4)
    np.testing.assert_allclose(bytes_of(padded(images, 16))[:, :, 3:-3], 77, atol=1e-3)


@pytest.mark.parametrize("prepare", [cropped, padded])
def test_a_fine_chess_board_becomes_grey(prepare) -> None:
    """Both are antialiased: nothing of the board is left."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = bytes_of(prepare(np.repeat(board[None, :, :, None], 3, -1), 16))
    np.testing.assert_allclose(found[..., 2:-2, 2:-2], 127.5, atol=1)


def test_padded_pictures_may_overshoot_and_cropped_ones_not() -> None:
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[:, :, 32:] = 255
    assert bytes_of(padded(images, 16)).max() > 257
    assert bytes_of(cropped(images, 16)).max() == pytest.approx(255, abs=1e-3)
