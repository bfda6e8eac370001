"""Scorers beside the process that asks: order, back-pressure, time limits, clean ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from moody import Far, Moody, Together

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work import Failed, Jury, jury, runners
from flowopd.rewards.work.calls import attempt
from flowopd.tasks import PromptRecord
from flowopd.team import Alone

FILE = Path(__file__).with_name("moody.py")


def asked(*prompts: str) -> tuple[np.ndarray, list[PromptRecord]]:
    images = [np.full((2, 2, 3), (7 * i) % 256, np.uint8) for i in range(len(prompts))]
    return np.stack(images), [PromptRecord(prompt) for prompt in prompts]


def spec_of(name: str = "x", **keys: object) -> ScorerSpec:
    return build(ScorerSpec, {"name": name, **keys})


def reasons(scores: list) -> list[str | None]:
    return [score.reasons.get("mood") for score in scores]


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


class Held(Moody):
    """Scores when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def score(self, images, records):
        self.go.wait(20)
        return super().score(images, records)


class TestInAThread:
    def test_calls_are_answered_in_their_order_as_they_would_be_in_series(self) -> None:
        scorer = Moody()
        orders = [asked(*[f"{n}{i}" for i in range(n)]) for n in (3, 1, 5)]
        with Jury([(spec_of(), scorer)]) as jury:
            calls = [jury.call(scorer, *order) for order in orders]
            found = [call.result() for call in calls]
        assert found == [attempt(Moody(), *order) for order in orders]
        assert found[2] == calls[2].result()

    def test_it_is_another_thread_than_the_one_that_asks(self) -> None:
        scorer = Held()
        with Jury([(spec_of(), scorer)]) as jury:
            call = jury.call(scorer, *asked("a"))
            assert scorer.calls == []
            scorer.go.set()
            assert call.result()[0].values["mood"] == 0

    def test_who_asks_for_too_much_waits(self) -> None:
        scorer, begun = Held(), []

        def ask() -> None:
            for number in range(6):
                calls.append(jury_.call(scorer, *asked(f"{number}")))
                begun.append(number)

        calls: list = []
        with Jury([(spec_of(), scorer)]) as jury_:
            thread = threading.Thread(target=ask)
            thread.start()
            assert until(lambda: len(begun) == 1 + jury.WAITING)
            time.sleep(0.2)
            assert len(begun) == 1 + jury.WAITING
            scorer.go.set()
            thread.join(10)
            assert [call.result()[0].values["other"] for call in calls] == [1] * 6

    def test_a_call_that_takes_too_long_is_given_up_and_those_behind_it_at_once(self) -> None:
        scorer = Held()
        with Jury([(spec_of(timeout=0.2), scorer)]) as jury:
            first, second = (jury.call(scorer, *asked("a", "b")) for _ in range(2))
            assert reasons(first.result()) == ["it did not answer within 0.2 s"] * 2
            assert all(isinstance(score, Failed) for score in first.result())
            busy = "it is still at work on a call that was given up"
            assert reasons(second.result()) == [busy] * 2
            scorer.go.set()
            assert until(lambda: reasons(jury.call(scorer, *asked("c")).result()) == [None])
            found = jury.call(scorer, *asked("d", "e", "f")).result()
            assert len(found) == 3
            assert reasons(found) == [None] * 3

    def test_what_it_raises_is_missing(self) -> None:
        scorer = Moody()
        with Jury([(spec_of(), scorer)]) as jury:
            found = jury.call(scorer, *asked("a", "raise", "b")).result()
        assert reasons(found) == [None, "ValueError: it says raise", None]

    def test_closing_does_not_wait(self) -> None:
        scorer = Held()
        start = time.monotonic()
        with Jury([(spec_of(), scorer)]) as jury:
            for _ in range(3):
                jury.call(scorer, *asked("a"))
        assert time.monotonic() - start < 5
        scorer.go.set()

    def test_one_that_wants_to_end_the_process_gives_nothing(self) -> None:
        class Leaving(Moody):
            def score(self, images, records):
                raise SystemExit(3)

        scorer = Leaving()
        with Jury([(spec_of(), scorer)]) as jury:
            found = jury.call(scorer, *asked("a", "b")).result()
            assert reasons(found) == ["SystemExit: 3"] * 2
            assert reasons(jury.call(scorer, *asked("c")).result()) == ["SystemExit: 3"]

    def test_closing_lets_it_give_back_what_it_holds(self) -> None:
        class Holding(Moody):
            closed = ""

            def close(self):
                self.closed = threading.current_thread().name

        scorer = Holding()
        with Jury([(spec_of(), scorer)]) as jury:
            jury.call(scorer, *asked("a")).result()
            assert not scorer.closed
        assert until(lambda: scorer.closed == scorer.name)
        with Jury([(spec_of(), idle := Holding())]):
            pass
        assert not idle.closed

    def test_what_still_works_when_it_is_closed_leaves_the_scorer_to_the_next(self) -> None:
        class Keeping(Held):
            closed = False

            def close(self):
                self.closed = True

        scorer = Keeping()
        with Jury([(spec_of(), scorer)]) as first:
            first.call(scorer, *asked("a"))
            assert until(lambda: any(t.name == "moody" for t in threading.enumerate()))
            time.sleep(0.1)
        with Jury([(spec_of(), scorer)]) as second:
            scorer.go.set()
            assert reasons(second.call(scorer, *asked("b")).result()) == [None]
            assert until(lambda: len(scorer.calls) == 2)
            assert not scorer.closed
        assert until(lambda: scorer.closed)

    def test_a_closed_one_does_nothing_more(self) -> None:
        runner = runners.ThreadRunner(Moody())
        runner.close()
        with pytest.raises(runners.GivenUp, match="it has been closed"):
            runner.run((runners.LOAD,))

    def test_an_empty_call(self) -> None:
        scorer = Moody()
        with Jury([(spec_of(), scorer)]) as jury:
            assert jury.call(scorer, np.zeros((0, 2, 2, 3), np.uint8), []).result() == []


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Jury, object]]:
    """A scorer in two processes; a call is given up after two seconds."""
    spec = spec_of(f"{FILE}:Far", processes=2, timeout=2)
    scorer = spec.load()
    with Jury([(spec, scorer)]) as jury:
        jury.load()
        yield jury, scorer


class TestInProcesses:
    def test_scores_are_those_of_one_process(self, far: tuple[Jury, Moody]) -> None:
        jury, scorer = far
        order = asked("slow", "b", "c", "slow", "e", "f", "g")
        found = jury.call(scorer, *order).result()
        expected = attempt(Moody(), *order)
        assert [score.values for score in found] == [score.values for score in expected]
        processes = {score.detail["pid"] for score in found}
        assert len(processes) == 2
        assert os.getpid() not in processes
        assert scorer.calls == []

    def test_one_that_hangs_is_ended_and_started_again(self, far: tuple[Jury, Moody]) -> None:
        jury, scorer = far
        found = jury.call(scorer, *asked("a", "b", "hang", "c")).result()
        gone = "it did not answer within 2 s; its process was ended"
        assert reasons(found) == [None, None, gone, gone]
        again = jury.call(scorer, *asked("a", "b", "d", "c")).result()
        assert reasons(again) == [None] * 4

    def test_one_that_ends_is_started_again(self, far: tuple[Jury, Moody]) -> None:
        jury, scorer = far
        found = jury.call(scorer, *asked("end", "a")).result()
        assert reasons(found) == ["its process ended (exit status 3)", None]
        assert reasons(jury.call(scorer, *asked("a", "b")).result()) == [None] * 2

    def test_signals_are_for_the_one_that_started_them(self, far: tuple[Jury, Moody]) -> None:
        """A Ctrl-C and a batch system's end reach all; the run then finishes its update first."""
        jury, scorer = far
        pids = [s.detail["pid"] for s in jury.call(scorer, *asked("slow", "slow")).result()]
        for pid in pids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        again = jury.call(scorer, *asked("slow", "slow")).result()
        assert {score.detail["pid"] for score in again} == set(pids)

    def test_what_cannot_be_sent_is_a_reason(self, far: tuple[Jury, Moody]) -> None:
        jury, scorer = far
        (reason,) = reasons(jury.call(scorer, *asked("unsendable")).result())
        assert reason.startswith("what it found cannot be sent: ")

    def test_it_is_examined_there(self, far: tuple[Jury, Moody]) -> None:
        ((_, found),) = far[0].examine()
        assert (found.good, found.findings[0].what) == (True, "nothing")

    def test_any_scorer_can_be_given_some(self) -> None:
        spec = spec_of(f"{FILE}:Moody", processes=1)
        scorer = spec.load()
        with Jury([(spec, scorer)]) as jury:
            (found,) = jury.call(scorer, *asked("a")).result()
        assert found.detail["pid"] != os.getpid()
        assert scorer.calls == []

    def test_one_that_cannot_be_loaded(self) -> None:
        spec = spec_of(f"{FILE}:Far", refuses=True, processes=1)
        with Jury([(spec, spec.load())]) as jury:
            with pytest.raises(FlowOPDError, match="'far' has no weights"):
                jury.load()
            ((_, found),) = jury.examine()
        assert found.problem == "The scorer 'far' has no weights."


END = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
from test_jury import FILE, Jury, asked, spec_of

if __name__ == "__main__":
    # What was started in the background ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    spec = spec_of(f"{{FILE}}:Far", processes=1)
    scorer = spec.load()
    with Jury([(spec, scorer)]) as jury:
        print(jury.call(scorer, *asked("a")).result()[0].detail["pid"], flush=True)
        jury.call(scorer, *asked("hang"))
        {how}
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(20)", {130, -signal.SIGINT, 1}),
        ("os.kill(os.getpid(), signal.SIGKILL)", {-signal.SIGKILL}),
    ],
    ids=["Ctrl-C", "killed"],
)
def test_processes_end_with_the_one_that_started_them(
    tmp_path: Path, how: str, code: set[int]
) -> None:
    """Even if they are at work."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    (tmp_path / "main.py").write_text(END.format(paths=paths, how=how))
    ended = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode in code, ended.stderr
    pid = int(ended.stdout)
    assert until(lambda: not is_there(pid))


def is_there(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


class TestCutting:
    def test_the_images_of_a_prompt_stay_together(self) -> None:
        class FarTogether(Together):
            workers = "processes"

        desk = jury.Desk(spec_of(processes=3), FarTogether())
        assert desk._cut(7) == [(0, 7)]

    @pytest.mark.parametrize(
        ("count", "parts"),
        [(0, [(0, 0)]), (1, [(0, 1)]), (2, [(0, 1), (1, 2)]), (7, [(0, 2), (2, 4), (4, 7)])],
    )
    def test_even_parts(self, count: int, parts: list[tuple[int, int]]) -> None:
        class Far(Moody):
            workers = "processes"

        assert jury.Desk(spec_of(processes=3), Far())._cut(count) == parts

    def test_their_usual_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runners.os, "sched_getaffinity", lambda _: range(16), raising=False)
        assert runners.usual_processes() == 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert runners.usual_processes() == 2
        monkeypatch.setattr(runners.os, "sched_getaffinity", lambda _: range(2), raising=False)
        assert runners.usual_processes() == 1


class ThreadedFar(Far):
    workers = "threads"


class TestChecks:
    def test_a_bad_finding_is_refused_in_a_sentence(self) -> None:
        from flowopd.rewards.work.checking import check_jury

        spec = spec_of(f"{FILE}:Far", processes=1, low=0.5)
        with Jury([(spec, spec.load())]) as jury, pytest.raises(FlowOPDError) as caught:
            check_jury(jury, Alone())
        assert str(caught.value) == (
            "The reward check failed: moody: nothing gave 0.5, expected 0. Nothing was begun; mend "
            "the scorer, or go on without the check (--skip-reward-check)."
        )

    def test_a_scorer_without_a_check_passes(self) -> None:
        from flowopd.rewards.work.checking import check_jury

        with Jury([(spec_of(), Moody())]) as jury:
            ((name, found),) = check_jury(jury, Alone())
        assert name == "moody"
        assert (found.good, found.checks_itself, found.findings) == (True, False, ())

    def test_two_of_one_name_are_both_looked_at(self) -> None:
        from flowopd.rewards.work.checking import check_jury

        specs = [spec_of(f"{FILE}:Far", low=low) for low in (0.5, 0.0)]
        with Jury([(spec, ThreadedFar(spec.load().settings)) for spec in specs]) as jury:
            assert [name for name, _ in jury.examine()] == ["moody", "moody"]
            with pytest.raises(FlowOPDError, match=r"nothing gave 0\.5, expected 0"):
                check_jury(jury, Alone())

    def test_one_that_hangs_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jury, "STARTING", 0.2)

        class Slow(Moody):
            def self_check(self):
                time.sleep(3)

        with Jury([(spec_of(timeout=0.1), Slow())]) as jury_:
            ((_, found),) = jury_.examine()
        assert found.problem == "it cannot be examined: it did not answer within 0.2 s"

    def test_a_check_that_raises_is_a_problem(self) -> None:
        class Odd(Moody):
            def self_check(self):
                raise ZeroDivisionError("by zero")

        with Jury([(spec_of(), Odd())]) as jury:
            ((_, found),) = jury.examine()
        assert found.problem == "its self-check failed: ZeroDivisionError: by zero"
        assert not found.good

    def test_speed_is_taken_on_the_scorers_own_example(self) -> None:
        class Shows(Moody):
            def example(self):
                return np.zeros((2, 2, 3), np.uint8), PromptRecord("mine")

        scorer = Shows()
        with Jury([(spec_of(), scorer)]) as jury:
            ((_, found),) = jury.examine(speed=True)
        assert found.images_per_second > 0
        assert scorer.calls[0] == ["mine"] * 8
