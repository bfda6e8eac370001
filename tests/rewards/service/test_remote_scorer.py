"""The scorer that asks servers: the same numbers, and every picture once, whatever happens."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from remotes import EXACT, KEY, remote, values
from served import Exact, Fussy, Slow, ask, free_port, pictures, records, served
from unhurried import Unhurried

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import MetricInfo, UnavailableError
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.settings import ScorerSpec
from flowopd.tasks.prompts import PromptRecord

HERE = Path(__file__).parent
UNHURRIED = f"{HERE / 'unhurried.py'}:Unhurried"


def dead_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


class TestScores:
    @pytest.mark.parametrize("form", ["png", "webp"])
    def test_are_the_local_ones_to_the_last_bit(self, form: str) -> None:
        images, own = pictures(20, size=40), records(20, include=[{"class": "cat"}])
        with served(Exact()) as url, remote(url, format=form, batch_size=6) as scorer:
            found = scorer.score(images, own)
        expected = Exact().score(images, own)
        assert values(found) == values(expected)
        assert [one.detail["tag"] for one in found] == [one.detail["tag"] for one in expected]
        assert [one.detail["meta"] for one in found] == [one.meta for one in own]

    def test_of_jpegs_are_others_and_that_is_part_of_its_identity(self) -> None:
        images, own = pictures(2), records(2)
        with served(Exact()) as url, remote(url, format="jpeg") as scorer:
            assert values(scorer.score(images, own)) != values(Exact().score(images, own))
        spec = {"name": "remote", "scorer": "deqa", "urls": ["http://a"]}
        known = ScorerSpec.model_validate(spec).identity()
        assert known == {"scorer": {"name": "deqa"}}
        assert ScorerSpec.model_validate({**spec, "format": "webp"}).identity() == known
        lossy = ScorerSpec.model_validate({**spec, "format": "jpeg", "quality": 90}).identity()
        assert lossy == {**known, "format": "jpeg", "quality": 90}

    def test_keep_what_is_missing(self) -> None:
        own = [PromptRecord("x", "a"), PromptRecord("raises", "a"), PromptRecord("nan", "a")]
        declared = {**EXACT, "tasks": ["a", "b"]}
        with served(Fussy()) as url, remote(url, declares=declared) as scorer:
            good, raised, odd = scorer.score(pictures(3), own)
        assert None not in good.values.values()
        assert raised.values == {"exact": None, "length": None}
        assert "no memory left" in raised.reasons["length"]
        assert odd.values == {"exact": None, "length": 2.0}

    def test_of_fewer_tasks_than_the_server_reads(self) -> None:
        declared = {**EXACT, "tasks": ["a", "b"]}
        with served(Fussy()) as url:
            spec = {"name": "remote", "urls": [url], "declares": declared, "tasks": ["a"]}
            with contextlib.closing(ScorerSpec.model_validate(spec).load()) as scorer:
                assert scorer.tasks == {"a"}
                (found,) = scorer.score(pictures(1), [PromptRecord("x", "a")])
        assert None not in found.values.values()

    def test_come_from_threads_at_the_same_time(self) -> None:
        found: dict[int, Any] = {}
        with served(Exact()) as url, remote(url, batch_size=3) as scorer:

            def one(seed: int) -> None:
                found[seed] = values(scorer.score(pictures(8, seed=seed), records(8)))

            threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for seed in range(4):
            assert found[seed] == values(Exact().score(pictures(8, seed=seed), records(8)))

    def test_of_nothing_are_nothing(self) -> None:
        with served(Exact()) as url, remote(url) as scorer:
            assert scorer.score(pictures(1)[:0], []) == []


class TestBatches:
    def test_are_as_large_as_asked_for_and_as_the_servers_take(self) -> None:
        for limits, batch, calls in [
            (Limits(), 4, [4, 4, 2]),
            (Limits(batch=3), 16, [3, 3, 3, 1]),
            (Limits(pixels=5 * 80), 16, [5, 5]),
            (Limits(body=15_000), 16, [2] * 5),
        ]:
            scorer = Exact()
            with served(scorer, limits) as url, remote(url, batch_size=batch) as asked:
                asked.score(pictures(10), records(10))
            assert sorted(scorer.calls, reverse=True) == calls

    def test_of_a_grouped_scorer_hold_whole_prompts(self) -> None:
        scorer = Exact()
        scorer.grouped = True  # type: ignore[misc]
        own = [record for record in records(3) for _ in range(4)]
        mixed = own[::2] + own[1::2]
        declared = {**EXACT, "grouped": True}
        with served(scorer) as url, remote(url, declares=declared, batch_size=2) as asked:
            found = asked.score(pictures(12), mixed)
        assert values(found) == values(Exact().score(pictures(12), mixed))
        assert scorer.calls == [4, 4, 4]
        with (
            served(scorer, Limits(batch=3)) as url,
            remote(url, declares=declared) as asked,
            pytest.raises(FlowOPDError, match="there are 4; its servers do not take so many"),
        ):
            asked.score(pictures(12), mixed)

    def test_of_pictures_that_are_too_large_are_refused(self) -> None:
        with (
            served(Exact(), Limits(pixels=50)) as url,
            remote(url) as scorer,
            pytest.raises(FlowOPDError, match="do not take pictures of 10 x 8 pixels"),
        ):
            scorer.score(pictures(2), records(2))


class TestSettings:
    def test_take_the_declaration_from_a_scorer_of_this_installation(self) -> None:
        spec = {"name": "remote", "scorer": "deqa", "urls": ["http://10.1.2.3:9"]}
        scorer = plugins.load_scorer(spec)
        assert (scorer.name, scorer.version, scorer.grouped) == ("deqa", 1, False)
        assert scorer.metrics == (MetricInfo("deqa", 1, 5, scale=5),)
        assert scorer.about.models == ("zhiyuanyou/DeQA-Score-Mix3",)
        picture, record = scorer.example()
        assert picture.shape == (512, 512, 3)
        scorer.check(record)

    def test_hand_the_check_of_records_on(self) -> None:
        spec = {"name": "remote", "scorer": f"{HERE / 'served.py'}:Fussy"}
        scorer = plugins.load_scorer(spec)
        assert scorer.tasks == {"a", "b"}
        with pytest.raises(FlowOPDError, match="it is refused"):
            scorer.check(PromptRecord("refused"))

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({}, "what the servers serve: either 'scorer'"),
            ({"scorer": "deqa", "declares": EXACT}, "either 'scorer'"),
            ({"scorer": "deqa", "urls": []}, "urls"),
            ({"scorer": "deqa", "urls": ["10.0.0.1:80"]}, "begin with http"),
            ({"scorer": "deqa", "urls": ["http://a", "http://a"]}, "named twice"),
            ({"scorer": "deqa", "format": "gif"}, "format"),
            ({"scorer": "deqa", "device": "cuda:1"}, "where the server is started"),
            ({"scorer": "nobody"}, "There is no scorer 'nobody'"),
            ({"scorer": "deqa", "url": "http://a"}, "Unknown key"),
            ({"declares": {"name": "x", "metrics": []}}, "metrics"),
        ],
    )
    def test_that_are_wrong_are_refused(self, given: dict[str, Any], sentence: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            plugins.load_scorer({"name": "remote", **given})
        assert sentence in str(caught.value)

    def test_do_not_hold_the_token(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{KEY}\n")
        with served(Exact(), token=KEY) as url:
            with remote(url) as scorer, pytest.raises(FlowOPDError, match="answered 401"):
                scorer.load()
            with remote(url, token_file=str(file)) as scorer:
                assert len(scorer.score(pictures(1), records(1))) == 1
                assert KEY not in str(scorer.settings)
            monkeypatch.setenv("MY_TOKEN", KEY)
            with remote(url, token_env="MY_TOKEN") as scorer:
                scorer.load()


class TestLoading:
    @pytest.mark.parametrize(
        ("declared", "sentence"),
        [
            ({**EXACT, "name": "other"}, "its name is 'exact', and should be 'other'"),
            ({**EXACT, "version": 2}, "its version is 3, and should be 2"),
            ({**EXACT, "metrics": EXACT["metrics"][:1]}, "its metrics is"),
            ({**EXACT, "tasks": ["a"]}, "its tasks is None"),
            ({**EXACT, "grouped": True}, "its grouped is False"),
        ],
    )
    def test_refuses_servers_of_something_else(
        self, declared: dict[str, Any], sentence: str
    ) -> None:
        with (
            served(Exact()) as url,
            remote(url, declares=declared) as scorer,
            pytest.raises(FlowOPDError) as caught,
        ):
            scorer.load()
        assert sentence in str(caught.value)
        assert url in str(caught.value)

    def test_refuses_servers_with_other_settings(self) -> None:
        spec = f"{HERE / 'served.py'}:Exact"
        with (
            served(Exact(), identity={"model": "owner/other"}) as url,
            remote(url, scorer=spec) as scorer,
            pytest.raises(FlowOPDError, match="settings"),
        ):
            scorer.load()
        with served(Exact()) as url, remote(url, scorer=spec) as scorer:
            scorer.load()

    def test_waits_for_servers_and_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        url = dead_url()
        with (
            remote(url, patience=0.5) as scorer,
            pytest.raises(FlowOPDError, match="None of the servers answers") as caught,
        ):
            scorer.load()
        assert url in str(caught.value)
        assert "waiting up to 0.5 seconds" in capsys.readouterr().err

    def test_goes_on_without_those_that_are_away(self, capsys: pytest.CaptureFixture[str]) -> None:
        away = dead_url()
        with served(Exact()) as url, remote(away, url, batch_size=2) as scorer:
            found = scorer.score(pictures(9), records(9))
        assert values(found) == values(Exact().score(pictures(9), records(9)))
        assert f"{away} does not answer" in capsys.readouterr().err

    def test_refuses_what_is_no_server_of_scores(self) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Other(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>hello</html>")

            def log_message(self, *arguments: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with (
            remote(f"http://127.0.0.1:{server.server_address[1]}", patience=0.1) as scorer,
            pytest.raises(FlowOPDError, match="it is no server of scores"),
        ):
            scorer.load()
        server.shutdown()
        server.server_close()

    def test_check_is_the_servers_own(self) -> None:
        declared = {**EXACT, "tasks": ["a", "b"]}
        with served(Fussy()) as url, remote(url, declares=declared) as scorer:
            first, second = scorer.self_check()
        assert (first.what, first.value, first.good) == (f"{url}: red", 0.25, True)
        assert (second.value, second.expected, second.good) == (None, "a value", False)


class TestSeveral:
    def test_share_the_work(self) -> None:
        scorers = [Slow(0.02), Slow(0.02)]
        with (
            served(scorers[0]) as one,
            served(scorers[1]) as two,
            remote(one, two, batch_size=2) as asked,
        ):
            found = asked.score(pictures(24), records(24))
        assert values(found) == values(Exact().score(pictures(24), records(24)))
        seen = [scorer.seen for scorer in scorers]
        assert sorted(seen[0] + seen[1]) == sorted(record.prompt for record in records(24))
        assert min(len(one) for one in seen) >= 4

    def test_one_that_is_stuck_is_overtaken(self) -> None:
        """Its work is done by the other, and it is left alone afterwards."""
        stuck, quick = Slow(), Exact()
        with served(stuck) as one, served(quick) as two:
            with remote(one, two, batch_size=2, hedge_after=0.2) as asked:
                start = time.monotonic()
                found = asked.score(pictures(12), records(12))
                assert time.monotonic() - start < 10
                assert values(found) == values(Exact().score(pictures(12), records(12)))
            stuck.go.set()

    def test_a_busy_one_is_asked_again_later(self) -> None:
        scorer = Slow(0.05)
        with served(scorer, Limits(queue=1)) as url:
            with remote(url, batch_size=1, connections=4) as asked:
                found = asked.score(pictures(5), records(5))
            assert values(found) == values(Exact().score(pictures(5), records(5)))
            assert 'path="/score",status="429"' in ask(url, "GET", "/metrics")[1]
        assert sorted(scorer.seen) == sorted(record.prompt for record in records(5))

    def test_that_stay_busy_are_an_error(self) -> None:
        scorer = Slow()
        with served(scorer, Limits(queue=1)) as url:
            holder = threading.Thread(target=self._hold, args=(url,))
            holder.start()
            assert scorer.started.wait(10)
            with (
                remote(url, request_seconds=0.5) as asked,
                pytest.raises(FlowOPDError, match="have been too busy"),
            ):
                asked.score(pictures(1), records(1))
            scorer.go.set()
            holder.join()

    def _hold(self, url: str) -> None:
        with remote(url) as asked:
            asked.score(pictures(1), records(1))

    def test_none_that_is_left_is_an_error(self) -> None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(served(Exact()))
            with remote(url, dead_url(), patience=0.3) as asked:
                asked.score(pictures(1), records(1))
                stack.close()
                start = time.monotonic()
                with pytest.raises(FlowOPDError, match="None of the servers answers"):
                    asked.score(pictures(1), records(1))
                assert time.monotonic() - start < 10

    def test_a_refusal_is_about_its_picture(self) -> None:
        declared = {**EXACT, "tasks": ["a", "b"]}
        refused = PromptRecord("refused", "a")
        with served(Fussy()) as url, remote(url, declares=declared) as asked:
            found = asked.score(pictures(3), [PromptRecord("x", "a"), refused, *records(1)])
            assert [None in one.values.values() for one in found] == [False, True, False]
            assert re.search("answered 422: .* it is refused", found[1].reasons["exact"])
            with pytest.raises(UnavailableError, match=r"answered 422: .* it is refused"):
                asked.score(pictures(1), [refused])


class Replica:
    """A server in a process of its own."""

    def __init__(self, log: Path) -> None:
        code = (
            "import sys; from flowopd.rewards.service.server import serve\n"
            "from flowopd.rewards.settings import ScorerSpec\n"
            "serve(ScorerSpec(name=sys.argv[1]), port=0)"
        )
        environment = {**os.environ, "UNHURRIED_LOG": str(log)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, UNHURRIED],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("unhurried 1 is served at http://127.0.0.1:")
        return line.split()[-1]

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


def test_a_server_that_is_killed_at_work_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    count = 60
    images = pictures(count)
    own = [PromptRecord(f"prompt {i}", tag=str(i)) for i in range(count)]
    replicas = [Replica(log), Replica(log)]
    victim = replicas[0].process.pid
    try:
        urls = [replica.url() for replica in replicas]
        with remote(*urls, scorer=UNHURRIED, batch_size=4) as scorer:
            scorer.load()

            def kill_at_work() -> None:
                while f"{victim} " not in log.read_text():
                    time.sleep(0.005)
                replicas[0].process.kill()

            killer = threading.Thread(target=kill_at_work)
            killer.start()
            found = scorer.score(images, own)
            killer.join()
            again = scorer.score(images[:8], own[:8])
    finally:
        replicas[0].end()
        replicas[1].end(signal.SIGINT)
    expected = Unhurried().score(images, own)
    assert values(found) == values(expected)
    assert values(again) == values(expected[:8])
    seen = [line.split(" ", 1) for line in log.read_text().splitlines()]
    killed = {prompt for pid, prompt in seen if pid == str(victim)}
    survived = [prompt for pid, prompt in seen[: -len(again)] if pid != str(victim)]
    assert 0 < len(killed) < count, "it was killed while it was at work"
    assert len(survived) == len(set(survived)), "the other was asked for nothing twice"
    assert killed | set(survived) == {record.prompt for record in own}
    assert replicas[1].process.returncode == 0, "an interrupt ends a server in order"
