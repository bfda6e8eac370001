"""jpeg: minus the size of the file."""

from pathlib import Path

import numpy as np
import pytest
from pair_pictures import pictures
from PIL import Image

from flowopd import plugins
from flowopd.rewards.scorer import Scorer
from flowopd.tasks.prompts import PromptRecord


@pytest.fixture
def jpeg() -> Scorer:
    return plugins.load_scorer("jpeg")


def test_it_is_minus_the_size_of_a_file_by_500_kilobytes(jpeg: Scorer, tmp_path: Path) -> None:
    images = pictures(3, 64, 48)
    records = [PromptRecord(f"prompt {i}") for i in range(3)]
    for image, score in zip(images, jpeg.score(images, records), strict=True):
        Image.fromarray(image).save(tmp_path / "x.jpg", quality=95)
        size = (tmp_path / "x.jpg").stat().st_size
        assert score.values == {"jpeg": pytest.approx(-size / 500_000)}


def test_a_file_of_known_size(jpeg: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(picture: Image.Image, buffer, format: str, quality: int) -> None:
        assert (format, quality) == ("JPEG", 95)
        buffer.write(b"x" * 1500)

    monkeypatch.setattr(Image.Image, "save", save)
    (score,) = jpeg.score(np.zeros((1, 8, 8, 3), np.uint8), [PromptRecord("")])
    assert score.values == {"jpeg": -0.003}


def test_it_checks_itself(jpeg: Scorer) -> None:
    assert [finding.good for finding in jpeg.self_check()] == [True, True]
    (info,) = jpeg.metrics
    assert (info.high, info.scale) == (0, 1)
