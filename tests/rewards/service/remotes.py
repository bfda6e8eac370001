"""Remote scorers of the tests' servers, and what these would give here."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from served import Exact, pictures, records

from flowopd.config import build
from flowopd.rewards.scorer import Scores
from flowopd.rewards.service.remote import Remote
from flowopd.rewards.service.remote_settings import RemoteSettings

EXACT = {
    "name": "exact",
    "version": 3,
    "metrics": [{"name": "exact"}, {"name": "length", "low": 0, "high": 1e9, "scale": 10}],
}
KEY = "a-token-of-24-characters"


@contextlib.contextmanager
def remote(*urls: str, **more: Any) -> Iterator[Remote]:
    """With what `Exact` declares, unless it is told which scorer is served."""
    given = {"urls": list(urls), "patience": 5, **more}
    if "scorer" not in given:
        given.setdefault("declares", EXACT)
    with contextlib.closing(Remote(build(RemoteSettings, given))) as scorer:
        yield scorer


def values(scores: Sequence[Scores]) -> list[dict[str, float | None]]:
    return [score.values for score in scores]


def exact(count: int) -> list[dict[str, float | None]]:
    return values(Exact().score(pictures(count), records(count)))
