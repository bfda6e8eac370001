"""Calls of `remote` that fail: what is about no picture is not looked for in every half of one."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from remotes import EXACT
from served import Exact, free_port, pictures, records, served

from flowopd import plugins
from flowopd.rewards.service.remote import Remote
from flowopd.rewards.work.calls import Failed, attempt


@contextlib.contextmanager
def remote(url: str, **more: Any) -> Iterator[Remote]:
    given = {"name": "remote", "urls": [url], "patience": 0.5, "declares": EXACT, **more}
    with contextlib.closing(plugins.load_scorer(given)) as scorer:
        yield scorer


def test_without_a_server_they_wait_for_one_once() -> None:
    with remote(f"http://127.0.0.1:{free_port()}") as scorer:
        start = time.monotonic()
        found = attempt(scorer, pictures(8), records(8))
        assert time.monotonic() - start < 5
    assert all(isinstance(score, Failed) for score in found)
    assert "None of the servers answers" in found[7].reasons["exact"]


def test_when_the_servers_went_away_they_wait_for_them_once() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(served(Exact()))
        with remote(url) as scorer:
            scorer.load()
            stack.close()
            start = time.monotonic()
            found = attempt(scorer, pictures(8), records(8))
            assert time.monotonic() - start < 5
    assert [set(score.values.values()) for score in found] == [{None}] * 8
    assert "None of the servers answers" in found[7].reasons["exact"]


def test_a_wrong_token_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, score = list[int](), Remote.score
    monkeypatch.setattr(
        Remote, "score", lambda self, *given: calls.append(1) or score(self, *given)
    )
    with served(Exact(), token="a-token-of-24-characters") as url, remote(url) as scorer:
        found = attempt(scorer, pictures(8), records(8))
    assert "answered 401" in found[0].reasons["exact"]
    assert len(calls) == 1
