"""Many pictures through two servers: what is held at a time does not grow with their number."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from served import held, served, traced

from flowopd.config import build
from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.rewards.service import pool
from flowopd.rewards.service.remote import Remote
from flowopd.rewards.service.remote_settings import RemoteSettings
from flowopd.tasks.prompts import PromptRecord

SIZE, BATCH, CONNECTIONS = 512, 2, 2
CALL, CALLS = 8, 10


class Level:
    name, version, tasks, grouped = "level", 1, None, False
    metrics = (MetricInfo("level", 0, 255),)

    def score(self, images: np.ndarray, own: Sequence[PromptRecord]) -> list[Scores]:
        return [Scores({"level": float(image.mean())}) for image in images]


@contextlib.contextmanager
def through_two() -> Any:
    declares = {"name": "level", "metrics": [{"name": "level", "low": 0, "high": 255}]}
    with served(Level()) as one, served(Level()) as two:
        given = {
            "urls": [one, two],
            "declares": declares,
            "batch_size": BATCH,
            "connections": CONNECTIONS,
        }
        with contextlib.closing(Remote(build(RemoteSettings, given))) as scorer:
            yield scorer


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_calls_leave_nothing_behind() -> None:
    own = [PromptRecord(f"prompt {i}") for i in range(CALL)]
    images = noise(CALL, 0)
    with through_two() as scorer:
        first = scorer.score(images, own)
        with traced():
            scorer.score(images, own)
            before = held()
            for _ in range(CALLS):
                last = scorer.score(images, own)
            grown = held() - before
    assert [score.values for score in last] == [score.values for score in first]
    assert grown < images[0].nbytes, f"it grew by {grown / 2**20:.2f} MiB"


def test_only_what_travels_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are made when a server is free for them, however many pictures a call has."""
    encoded, most = 0, 0
    make = pool.request_body

    class Body(bytes):
        def __del__(self) -> None:
            nonlocal encoded
            encoded -= 1

    def counted(*arguments: Any) -> bytes:
        nonlocal encoded, most
        body = Body(make(*arguments))
        encoded += 1
        most = max(most, encoded)
        return body

    monkeypatch.setattr(pool, "request_body", counted)
    images = noise(8, 0).reshape(-1, 32, 32, 3)[:40]
    with through_two() as scorer:
        found = scorer.score(
            np.concatenate([images] * 10), [PromptRecord(f"{i}") for i in range(400)]
        )
    assert len(found) == 400
    assert 0 < most <= 2 * CONNECTIONS
