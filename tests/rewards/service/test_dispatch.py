"""Jobs over servers that fail in every order: each picture gets its one result, and it ends."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores, UnavailableError
from flowopd.rewards.service.cutting import together
from flowopd.rewards.service.dispatch import Dispatch, Patience
from flowopd.rewards.service.jobs import Job
from flowopd.rewards.service.replica import BusyError, DownError
from flowopd.rewards.service.retry import LONGEST, backoff, retry_after

PATIENCE = Patience(
    connections=2,
    attempts=1000,
    hedge_seconds=0.005,
    silent_seconds=5.0,
    busy_seconds=5.0,
    call_seconds=30.0,
)
LARGE = 1000


class Fake:
    """A server that does, each time, one of the things that servers do."""

    def __init__(self, url: str, dice: random.Random, *habits: str) -> None:
        self.url, self.dice, self.habits = url, dice, habits
        self.up, self.wrong, self.trouble = False, False, ""
        self.scored: list[int] = []
        self.sent: list[int] = []
        self.room = LARGE

    async def join(self) -> None:
        if self.up:
            return
        await asyncio.sleep(0)
        if self.habits == ("gone",):
            raise DownError("it is gone")
        if self.habits == ("other",):
            self.wrong = True
            raise FlowOPDError("it serves something else.")
        self.up = True

    def fail(self, trouble: str) -> None:
        self.up, self.trouble = False, trouble

    async def score(self, body: bytes, count: int) -> list[Scores]:
        assert count <= self.room
        self.sent.append(count)
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
    fakes: Sequence[Any], count: int, per_job: int = 3, unit: int = 1, **patience: Any
) -> list[float | None]:
    return [score.values["score"] for score in scored(fakes, count, per_job, unit, **patience)]


def scored(
    fakes: Sequence[Any], count: int, per_job: int = 3, unit: int = 1, **patience: Any
) -> list[Scores]:
    units = [tuple(range(i, min(i + unit, count))) for i in range(0, count, unit)]
    jobs = [Job(some) for some in together(units, per_job)]
    chosen = Patience(**{**vars(PATIENCE), **patience})

    async def run() -> dict[int, Scores]:
        async with asyncio.timeout(60):
            dispatch = Dispatch(fakes, jobs, encode, missing, chosen, lambda one: one.room)
            try:
                return await dispatch.run()
            finally:
                assert len(asyncio.all_tasks()) == 1, "nothing goes on behind"

    found = asyncio.run(run())
    assert sorted(found) == list(range(count))
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
    for attempts in (1, 2, 3, 4):
        found = dispatched(fakes, 12, 3, attempts=attempts)
        lost = {7} if attempts > 1 else {6, 7, 8}
        assert found == [None if i in lost else i for i in range(12)]
    found = dispatched(fakes, 12, 4, unit=2, attempts=3)
    assert found == [None if i in (6, 7) else i for i in range(12)], "those compared stay together"


def test_servers_that_are_all_away_are_an_error() -> None:
    fakes = [Fake("http://a", random.Random(0), "gone")]
    with pytest.raises(UnavailableError, match=r"None of the servers answers as .*: http://a"):
        dispatched(fakes, 3, silent_seconds=0.05)


def test_servers_of_something_else_are_an_error_at_once() -> None:
    dice = random.Random(0)
    other, gone = Fake("http://a", dice, "other"), Fake("http://b", dice, "gone")
    with pytest.raises(UnavailableError, match="None of the servers answers"):
        dispatched([other, Fake("http://c", dice, "other")], 3, silent_seconds=50)
    with pytest.raises(UnavailableError, match="None of the servers answers"):
        dispatched([other, gone], 3, silent_seconds=0.05)
    assert dispatched([other, Fake("http://c", dice, "quick")], 6) == list(range(6))


class Mortal(Fake):
    """Is gone, or does not come back, after so many requests."""

    def __init__(self, url: str, requests: int, then: str) -> None:
        super().__init__(url, random.Random(0), "quick")
        self.requests, self.then = requests, then

    async def score(self, body: bytes, count: int) -> list[Scores]:
        self.requests -= 1
        if self.requests < 0:
            self.habits = (self.then,)
            if self.then == "gone":
                raise DownError("it died")
        return await super().score(body, count)


def test_what_was_answered_is_kept_when_the_servers_are_away() -> None:
    found = scored([Mortal("http://a", 2, "gone")], 12, silent_seconds=0.05, connections=1)
    assert [one.values["score"] for one in found] == [0, 1, 2, 3, 4, 5] + [None] * 6
    assert "None of the servers answers" in found[-1].reasons["score"]
    assert "it died" in found[-1].reasons["score"]


def test_what_was_answered_is_kept_when_the_servers_are_too_busy() -> None:
    found = dispatched([Mortal("http://a", 2, "busy")], 12, busy_seconds=0.05, connections=1)
    assert found == [0, 1, 2, 3, 4, 5] + [None] * 6


def test_what_was_answered_is_kept_when_the_time_is_over() -> None:
    found = scored([Mortal("http://a", 3, "stuck")], 12, call_seconds=1.0, connections=1)
    assert [one.values["score"] for one in found] == [*range(9), None, None, None]
    assert "when the call's time (call_seconds) was over" in found[-1].reasons["score"]
    with pytest.raises(UnavailableError, match="call_seconds"):
        dispatched([Fake("http://a", random.Random(0), "stuck")], 3, call_seconds=0.05)


class Hangs(Fake):
    """Does not come back from one picture, and does nothing else meanwhile; or for so long."""

    def __init__(self, url: str, picture: int, seconds: float) -> None:
        super().__init__(url, random.Random(0), "quick")
        self.picture, self.seconds = picture, seconds
        self.until = 0.0

    async def score(self, body: bytes, count: int) -> list[Scores]:
        """Whoever asks may leave; the server hangs all the same."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
        if str(self.picture) in body.decode().split():
            self.until = time.monotonic() + self.seconds
            await asyncio.sleep(self.seconds)
            raise DownError("it was given up")
        return await super().score(body, count)


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_a_picture_at_which_servers_hang_is_the_only_one_without_a_score(servers: int) -> None:
    """They give it up in time: what it was sent with is tried by itself."""
    fakes = [Hangs(f"http://{i}", 3, 0.02) for i in range(servers)]
    assert dispatched(fakes, 24, 4, attempts=4) == [None if i == 3 else i for i in range(24)]


@pytest.mark.parametrize("servers", [2, 3])
def test_a_picture_at_which_servers_hang_for_good_comes_last(servers: int) -> None:
    """What waits behind it at one server is taken over before it itself is."""
    fakes = [Hangs(f"http://{i}", 3, 3600) for i in range(servers)]
    found = dispatched(fakes, 24, 1, hedge_seconds=0.02, call_seconds=2.0)
    assert found == [None if i == 3 else i for i in range(24)]


def test_pictures_that_are_refused_are_the_only_ones_without_a_score() -> None:
    class Refuses(Fake):
        async def score(self, body: bytes, count: int) -> list[Scores]:
            if b"7" in body:
                raise FlowOPDError("422: it is refused")
            return await super().score(body, count)

    class RefusesAll(Fake):
        async def score(self, body: bytes, count: int) -> list[Scores]:
            raise FlowOPDError("422: it is refused")

    fakes = [Refuses(f"http://{i}", random.Random(0), "quick") for i in range(2)]
    found = scored(fakes, 12, 4)
    assert [one.values["score"] for one in found] == [None if i == 7 else i for i in range(12)]
    assert found[7].reasons == {"score": "422: it is refused"}
    with pytest.raises(UnavailableError, match="it is refused"):
        dispatched([RefusesAll("http://a", random.Random(0), "quick")], 4, 4)


def test_a_server_that_no_longer_takes_our_token_is_like_one_that_is_away() -> None:
    class Changed(Fake):
        async def score(self, body: bytes, count: int) -> list[Scores]:
            self.habits = ("other",)
            raise UnavailableError("401")

    dice = random.Random(0)
    fakes = [Changed("http://a", dice, "quick"), Fake("http://b", dice, "slow")]
    assert dispatched(fakes, 24) == list(range(24))


def test_a_server_gets_no_more_than_it_takes() -> None:
    dice = random.Random(0)
    small, large = Fake("http://a", dice, "quick"), Fake("http://b", dice, "slow")
    small.room = 2
    assert dispatched([small, large], 60, 5) == list(range(60))
    assert max(small.sent) == 2
    assert max(large.sent) == 5


def test_a_server_that_is_too_small_is_left_out() -> None:
    dice = random.Random(0)
    small = Fake("http://a", dice, "quick")
    small.room = 2
    assert dispatched([small, Fake("http://b", dice, "slow")], 24, 4, unit=4) == list(range(24))
    assert small.sent == []
    with pytest.raises(UnavailableError, match="it takes no pictures as large"):
        dispatched([small], 24, 4, unit=4)


def test_servers_that_are_always_busy_are_an_error() -> None:
    fakes = [Fake("http://a", random.Random(0), "busy")]
    with pytest.raises(UnavailableError, match="too busy"):
        dispatched(fakes, 3, busy_seconds=0.05)


def test_pauses_grow_and_differ() -> None:
    pauses = [[backoff(failures) for _ in range(20)] for failures in range(12)]
    assert all(len(set(row)) > 1 for row in pauses)
    assert [max(row) for row in pauses[:4]] == sorted(max(row) for row in pauses[:4])
    assert max(map(max, pauses)) <= LONGEST
    assert 2 <= retry_after({"retry-after": "2"}, 0) < 3
    for odd in ("", "Wed, 21 Oct 2026 07:28:00 GMT", "-3", "1e9", "nan"):
        assert retry_after({"retry-after": odd}, 0) <= LONGEST
