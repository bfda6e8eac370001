"""Jobs over servers that fail in every order: each picture gets its one result, and it ends."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores
from flowopd.rewards.service.dispatch import Dispatch, Job, Patience
from flowopd.rewards.service.replica import BusyError, DownError
from flowopd.rewards.service.retry import LONGEST, backoff, retry_after

PATIENCE = Patience(
    connections=2,
    attempts=1000,
    hedge_seconds=0.005,
    silent_seconds=5.0,
    busy_seconds=5.0,
)


class Fake:
    """A server that does, each time, one of the things that servers do."""

    def __init__(self, url: str, dice: random.Random, *habits: str) -> None:
        self.url, self.dice, self.habits = url, dice, habits
        self.up, self.trouble = False, ""
        self.scored: list[int] = []

    async def join(self) -> None:
        if self.up:
            return
        await asyncio.sleep(0)
        if self.habits == ("gone",):
            raise DownError("it is gone")
        self.up = True

    def fail(self, trouble: str) -> None:
        self.up, self.trouble = False, trouble

    async def score(self, body: bytes, count: int) -> list[Scores]:
        habit = self.dice.choice(self.habits)
        if habit == "slow":
            await asyncio.sleep(self.dice.choice([0.001, 0.003, 0.02]))
        if habit == "quick":
            await asyncio.sleep(0)
        if habit == "busy":
            raise BusyError(0.001)
        if habit == "dies":
            await asyncio.sleep(self.dice.choice([0, 0.001]))
            raise DownError("it died")
        if habit == "stuck":
            await asyncio.sleep(3600)
        pictures = [int(text) for text in body.decode().split()]
        assert len(pictures) == count
        self.scored += pictures
        return [Scores({"score": float(picture)}) for picture in pictures]


def encode(pictures: Sequence[int]) -> bytes:
    return " ".join(map(str, pictures)).encode()


def missing(reason: str) -> Scores:
    return Scores({"score": None}, {"score": reason})


def dispatched(
    fakes: Sequence[Any], count: int, per_job: int = 3, **patience: Any
) -> list[float | None]:
    jobs = [Job(range(i, min(i + per_job, count))) for i in range(0, count, per_job)]
    chosen = Patience(**{**vars(PATIENCE), **patience})

    async def run() -> None:
        async with asyncio.timeout(30):
            await Dispatch(fakes, jobs, encode, missing, chosen).run()
        assert len(asyncio.all_tasks()) == 1, "nothing goes on behind"

    asyncio.run(run())
    found: dict[int, float | None] = {}
    for job in jobs:
        assert job.scores is not None
        for picture, score in zip(job.pictures, job.scores, strict=True):
            assert picture not in found
            found[picture] = score.values["score"]
    return [found[i] for i in range(count)]


@pytest.mark.parametrize("seed", range(25))
def test_every_picture_has_its_own_score(seed: int) -> None:
    dice = random.Random(seed)
    habits = ["quick", "slow", "busy", "dies"]
    fakes = [
        Fake(f"http://{i}", dice, "quick", *dice.choices(habits, k=3))
        for i in range(dice.randrange(1, 4))
    ]
    fakes += [Fake("http://gone", dice, "gone")] * dice.randrange(2)
    count = dice.randrange(1, 40)
    assert dispatched(fakes, count, dice.randrange(1, 5)) == list(range(count))


def test_servers_that_answer_at_once_come_to_an_end_every_time() -> None:
    dice = random.Random(0)
    for _ in range(100):
        fakes = [Fake("http://a", dice, "quick"), Fake("http://b", dice, "quick")]
        assert dispatched(fakes, 6, 1, hedge_seconds=20) == list(range(6))
        assert sorted(fakes[0].scored + fakes[1].scored) == list(range(6))


def test_a_server_that_is_stuck_is_overtaken_and_left_alone() -> None:
    dice = random.Random(0)
    stuck, quick = Fake("http://a", dice, "stuck"), Fake("http://b", dice, "quick")
    assert dispatched([stuck, quick], 30, 1) == list(range(30))
    assert stuck.scored == []
    assert stuck.trouble == "it was overtaken by another server"


def test_one_server_alone_is_not_asked_twice_for_what_takes_long() -> None:
    slow = Fake("http://a", random.Random(0), "slow")
    dispatched([slow], 10, 1)
    assert sorted(slow.scored) == list(range(10))


def test_after_so_many_failures_pictures_stay_without_a_score() -> None:
    class Picky(Fake):
        async def score(self, body: bytes, count: int) -> list[Scores]:
            if b"7" in body:
                raise DownError("it died")
            return await super().score(body, count)

    dice = random.Random(0)
    fakes = [Picky(f"http://{i}", dice, "quick") for i in range(2)]
    found = dispatched(fakes, 12, 3, attempts=3)
    assert found == [0, 1, 2, 3, 4, 5, None, None, None, 9, 10, 11]


def test_servers_that_are_all_away_are_an_error() -> None:
    fakes = [Fake("http://a", random.Random(0), "gone")]
    with pytest.raises(FlowOPDError, match=r"None of the servers answers: http://a"):
        dispatched(fakes, 3, silent_seconds=0.05)


def test_servers_that_are_always_busy_are_an_error() -> None:
    fakes = [Fake("http://a", random.Random(0), "busy")]
    with pytest.raises(FlowOPDError, match="too busy"):
        dispatched(fakes, 3, busy_seconds=0.05)


def test_pauses_grow_and_differ() -> None:
    pauses = [[backoff(failures) for _ in range(20)] for failures in range(12)]
    assert all(len(set(row)) > 1 for row in pauses)
    assert [max(row) for row in pauses[:4]] == sorted(max(row) for row in pauses[:4])
    assert max(map(max, pauses)) <= LONGEST
    assert 2 <= retry_after({"retry-after": "2"}, 0) < 3
    for odd in ("", "Wed, 21 Oct 2026 07:28:00 GMT", "-3", "1e9", "nan"):
        assert retry_after({"retry-after": odd}, 0) <= LONGEST
