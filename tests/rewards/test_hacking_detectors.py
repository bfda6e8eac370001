"""The detectors on pictures whose numbers are known, and that hacked pictures stand out."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from flowopd.rewards.detectors import detect

SIZE = 32


def flat(level: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), level, np.uint8)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


def one(image: np.ndarray) -> dict[str, float]:
    return detect(image[None])


@pytest.mark.parametrize(("level", "dark"), [(0, 1.0), (25, 1.0), (26, 0.0), (255, 0.0)])
def test_an_empty_picture(level: int, dark: float) -> None:
    assert one(flat(level)) == {"edges": 0, "entropy": 0, "grid": 0, "dark": dark}


def test_half_black_half_white() -> None:
    image = flat(0)
    image[:, SIZE // 2 :] = 255
    found = one(image)
    assert found["edges"] == pytest.approx(1 / (SIZE - 1) / 2)
    assert found["entropy"] == pytest.approx(np.log(2) / np.log(64))
    assert found["dark"] == 0.5


def test_a_chess_board_is_all_edges() -> None:
    board = np.indices((SIZE, SIZE)).sum(0) % 2 * 255
    assert one(np.repeat(board[..., None], 3, -1).astype(np.uint8))["edges"] == pytest.approx(1)


def test_all_colours_evenly_have_entropy_one() -> None:
    levels = np.arange(64)
    colours = np.stack([levels // 16, levels // 4 % 4, levels % 4], -1) * 64
    image = np.tile(colours.reshape(8, 8, 3), (4, 4, 1)).astype(np.uint8)
    assert one(image)["entropy"] == pytest.approx(1)


def test_they_are_means_over_pictures() -> None:
    images = np.stack([noise(0), flat(0), noise(1)])
    together, each = detect(images), [one(image) for image in images]
    for name, value in together.items():
        assert value == pytest.approx(np.mean([found[name] for found in each]), rel=1e-5)


def test_blur_shows_in_the_edges() -> None:
    blurred = uniform_filter(noise().astype(float), (5, 5, 1)).astype(np.uint8)
    assert one(blurred)["edges"] < 0.3 * one(noise())["edges"]


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_faint_grid_over_noise_shows_in_the_spectrum(period: int, axis: int) -> None:
    stripes = (np.indices((SIZE, SIZE))[axis] % period == 0) * 60
    gridded = np.clip(noise() * 0.5 + stripes[..., None], 0, 255).astype(np.uint8)
    plain = (noise() * 0.5).astype(np.uint8)
    assert one(gridded)["grid"] > 2.5 * one(plain)["grid"]


def test_a_slow_wave_is_no_grid() -> None:
    wave = 60 * np.sin(2 * np.pi * np.arange(SIZE) / SIZE * 2)[:, None, None]
    waved = np.clip(noise() * 0.5 + 64 + wave, 0, 255).astype(np.uint8)
    plain = (noise() * 0.5 + 64).astype(np.uint8)
    assert one(waved)["grid"] == pytest.approx(one(plain)["grid"], rel=0.1)


def test_a_picture_that_is_not_square() -> None:
    assert all(np.isfinite(value) for value in one(noise()[:, :20]).values())
