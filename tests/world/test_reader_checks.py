"""The readers' own checks: good as they are, and bad when they read wrong."""

from typing import Any

import pytest

from flowopd.rewards.scorer import ChecksItself, Scores
from flowopd.rewards.work.examination import examine
from flowopd.world.readers.compose import ComposeReader
from flowopd.world.readers.diversity import DiversityReader
from flowopd.world.readers.preference import PreferenceReader
from flowopd.world.readers.quality import QualityReader
from flowopd.world.readers.text import TextReader

READERS = [ComposeReader, TextReader, QualityReader, PreferenceReader, DiversityReader]


@pytest.mark.parametrize("reader", READERS, ids=lambda cls: cls.name)
def test_they_find_themselves_good(reader: Any) -> None:
    found = examine(reader(), speed=True)
    assert found.good, found
    assert len(found.findings) == 2
    assert found.images_per_second is not None
    assert found.images_per_second > 10


@pytest.mark.parametrize("reader", READERS, ids=lambda cls: cls.name)
@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_a_reader_that_always_says_the_same_is_found_out(reader: Any, value: float | None) -> None:
    class Same(reader):  # type: ignore[misc]
        def score(self, images: Any, records: Any) -> list[Scores]:
            return [Scores({info.name: value for info in self.metrics}) for _ in records]

    same = Same()
    assert isinstance(same, ChecksItself)
    assert not examine(same, speed=False).good
