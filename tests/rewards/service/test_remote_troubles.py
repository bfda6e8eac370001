"""What goes wrong between a remote scorer and its servers, and what it costs: no other score."""

import contextlib
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import remotes
from deqa_script import script
from remotes import EXACT, KEY, exact, values
from served import Exact, Fussy, Slow, ask, free_port, pictures, records, served

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.evaluation.score import begin_scoring
from flowopd.rewards.scorer import Finding, Scores, UnavailableError
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.remote_settings import RemoteSettings
from flowopd.rewards.service.server import CALL_SECONDS, for_requests
from flowopd.rewards.service.wire import PROTOCOL, about_reply, request_body
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work import Failed, Jury
from flowopd.tasks.prompts import PromptRecord

HERE = Path(__file__).parent
remote = partial(remotes.remote, patience=1)


class Other(Exact):
    """The same numbers by name, and quite others."""

    version = 4

    def _one(self, image: np.ndarray, record: PromptRecord) -> Scores:
        return Scores({"exact": -1.0, "length": -1.0})


class TestAServerThatIsStartedAgain:
    def test_as_what_it_was_goes_on(self) -> None:
        port = free_port()
        with remote(f"http://127.0.0.1:{port}") as scorer:
            for _ in range(2):
                with served(Exact(), port=port):
                    assert values(scorer.score(pictures(2), records(2))) == exact(2)

    @pytest.mark.parametrize(
        ("scorer", "identity", "sentence"),
        [
            (Other(), {}, "its version is 4, and should be 3"),
            (Exact(), {"model": "owner/other"}, "its settings is {'model': 'owner/other'}"),
        ],
    )
    def test_as_something_else_is_not_believed(
        self, scorer: Any, identity: dict[str, Any], sentence: str
    ) -> None:
        port = free_port()
        with remote(f"http://127.0.0.1:{port}", patience=60) as asked:
            with served(Exact(), port=port):
                asked.load()
            start = time.monotonic()
            with (
                served(scorer, port=port, identity=identity),
                pytest.raises(UnavailableError) as caught,
            ):
                asked.score(pictures(1), records(1))
            assert time.monotonic() - start < 30, "it answers, and is not waited for"
        assert sentence in str(caught.value)

    def test_as_something_else_leaves_the_work_to_the_others(self) -> None:
        port, quick = free_port(), Exact()
        with served(quick) as one, remote(one, f"http://127.0.0.1:{port}", batch_size=1) as asked:
            with served(Exact(), port=port):
                asked.load()
            with served(Other(), port=port):
                assert values(asked.score(pictures(12), records(12))) == exact(12)
        assert len(quick.seen) == 12

    def test_gives_no_metrics_that_it_did_not_declare(self) -> None:
        class Odd(Exact):
            def _one(self, image: np.ndarray, record: PromptRecord) -> Scores:
                return Scores({"exact": 1.0, "length": 1.0, "price": 1.0})

        with (
            served(Odd()) as url,
            remote(url, attempts=2) as asked,
            pytest.raises(UnavailableError, match="'price', which is none of its metrics"),
        ):
            asked.score(pictures(1), records(1))


class TestAProtocol:
    """Replies of a server that may be years newer."""

    @contextlib.contextmanager
    def serving(self, about: Callable[[], bytes], **tls: Any) -> Iterator[int]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = about() if self.path == "/about" else b'{"status": "ok"}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            server.socket = tls["context"].wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()

    def test_of_another_number_is_refused_by_it(self) -> None:
        later = json.dumps({"protocol": PROTOCOL + 1, "unheard": "of"}).encode()
        with (
            self.serving(lambda: later) as port,
            remote(f"http://127.0.0.1:{port}", patience=60) as scorer,
            pytest.raises(UnavailableError) as caught,
        ):
            scorer.load()
        assert f"speaks the protocol {PROTOCOL + 1}, and this is {PROTOCOL}" in str(caught.value)
        assert "install the same on both sides" in str(caught.value)

    def test_over_tls_needs_a_certificate_that_is_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import ssl

        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("there is no openssl to make a certificate with")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        about = about_reply(Exact(), {}, Limits(), "first").model_dump_json().encode()
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with self.serving(lambda: about, context=context) as port:
            url = f"https://127.0.0.1:{port}"
            with (
                remote(url, patience=0) as scorer,
                pytest.raises(FlowOPDError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                scorer.load()
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            with remote(url, patience=0) as scorer:
                scorer.load()
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
            with (
                remote(url, patience=0) as scorer,
                pytest.raises(FlowOPDError, match="SSL_CERT_FILE or SSL_CERT_DIR name"),
            ):
                scorer.load()


class TestAToken:
    @pytest.mark.parametrize("token", [f"{KEY}\n", "sécret-token-of-24-chars", "two words"])
    def test_that_cannot_be_sent_is_refused_and_not_shown(
        self, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MY_TOKEN", token)
        with served(Exact(), token=KEY) as url, remote(url, token_env="MY_TOKEN") as scorer:
            found = Jury([(ScorerSpec(name="remote"), scorer)])
            with found, pytest.raises(FlowOPDError) as caught:
                found.load()
        said = str(caught.value)
        assert "The token in the environment's MY_TOKEN cannot be used" in said
        assert token.strip() not in said

    def test_of_another_name_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLOWOPD_REWARD_TOKEN", KEY)
        monkeypatch.delenv("MY_TOKEN", raising=False)
        assert build(RemoteSettings, {"declares": EXACT}).token() == KEY
        assert build(RemoteSettings, {"declares": EXACT, "token_env": "MY_TOKEN"}).token() is None

    def test_that_is_wrong_is_an_error_at_once(self) -> None:
        with (
            served(Exact(), token=KEY) as url,
            remote(url, patience=60) as scorer,
            pytest.raises(UnavailableError, match="answered 401"),
        ):
            scorer.load()


class TestInAJury:
    def test_servers_that_are_away_are_waited_for_once_and_all_has_failed(self) -> None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(served(Exact()))
            with (
                remote(url, patience=1.5) as scorer,
                Jury([(ScorerSpec(name="remote", timeout=60), scorer)]) as jury,
            ):
                jury.load()
                stack.close()
                start = time.monotonic()
                found = jury.call(scorer, pictures(8), records(8)).result()
                assert time.monotonic() - start < 8 * 1.5
        assert all(isinstance(one, Failed) for one in found)
        assert "None of the servers answers" in found[0].reasons["exact"]

    def test_scores_that_arrived_are_kept_when_the_servers_die(self) -> None:
        class Ends(Exact):
            """Ends the server of which it is a part."""

            end: Callable[[], None]

            def score(self, images: np.ndarray, own: Sequence[PromptRecord]) -> list[Scores]:
                if len(self.calls) == 3:
                    threading.Thread(target=self.end).start()
                    time.sleep(3.0)
                return super().score(images, own)

        scorer, stack = Ends(), contextlib.ExitStack()
        url = stack.enter_context(served(scorer))
        scorer.end = stack.close
        settings = {"patience": 0.3, "batch_size": 2, "connections": 1}
        with (
            remote(url, **settings) as asked,
            Jury([(ScorerSpec(name="remote", timeout=60), asked)]) as jury,
        ):
            found = jury.call(asked, pictures(12), records(12)).result()
        assert values(found[:6]) == exact(6)
        assert all(isinstance(one, Failed) for one in found[6:])

    @pytest.mark.parametrize("batch", [1, 16])
    def test_a_picture_at_which_every_server_hangs_costs_no_other(self, batch: int) -> None:
        """Its scorer is given up by the servers, and comes back."""

        class Poisoned(Exact):
            def score(self, images: np.ndarray, own: Sequence[PromptRecord]) -> list[Scores]:
                if any(record.prompt == "prompt 3" for record in own):
                    time.sleep(1.6)
                return super().score(images, own)

        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(served(Poisoned(), timeout=1.2)) for _ in range(2)]
            given = {"batch_size": batch, "hedge_after": 0.1, "patience": 20, "call_seconds": 40}
            with (
                remote(*urls, **given) as asked,
                Jury([(ScorerSpec(name="remote", timeout=60), asked)]) as jury,
            ):
                found = jury.call(asked, pictures(24), records(24)).result()
        assert [i for i, one in enumerate(found) if None in one.values.values()] == [3]
        assert values(found[:3] + found[4:]) == exact(24)[:3] + exact(24)[4:]
        assert "no server could score it, the last of 4" in found[3].reasons["exact"]
        assert isinstance(found[3], Failed)

    def test_scores_that_arrived_are_kept_when_a_server_hangs_for_good(self) -> None:
        class Hangs(Slow):
            def score(self, images: np.ndarray, own: Sequence[PromptRecord]) -> list[Scores]:
                if len(self.calls) == 3:
                    self.go.wait(60)
                return Exact.score(self, images, own)

        scorer = Hangs()
        given = {"batch_size": 2, "connections": 1, "call_seconds": 4.0}
        with served(scorer) as url, remote(url, **given) as asked:
            asked.load()
            with Jury([(ScorerSpec(name="remote", timeout=60), asked)]) as jury:
                found = jury.call(asked, pictures(12), records(12)).result()
            scorer.go.set()
        assert values(found[:6]) == exact(6)
        assert all(isinstance(one, Failed) for one in found[6:])
        assert "the call's time (call_seconds) was over" in found[-1].reasons["exact"]

    def test_it_is_closed_and_can_be_used_again(self) -> None:
        with served(Exact()) as url, remote(url) as scorer:
            for _ in range(2):
                with Jury([(ScorerSpec(name="remote"), scorer)]) as jury:
                    assert values(jury.call(scorer, pictures(2), records(2)).result()) == exact(2)
                scorer.close()
                scorer.close()


def test_times_fit_into_each_other() -> None:
    """Whoever waits outside waits longer."""
    settings = build(RemoteSettings, {"declares": EXACT})
    assert settings.hedge_after < CALL_SECONDS
    assert script().Scorer(None, {}).timeout == CALL_SECONDS
    assert settings.request_seconds > CALL_SECONDS
    assert settings.attempts * CALL_SECONDS < settings.call_seconds
    assert 2 * settings.request_seconds < settings.call_seconds
    assert settings.patience + settings.request_seconds < settings.call_seconds
    assert settings.call_seconds < ScorerSpec(name="remote").timeout


def test_a_judge_that_is_served_ends_its_calls_before_the_server_does() -> None:
    served_judge = for_requests(ScorerSpec(name="qwenvl"))
    assert served_judge.timeout == CALL_SECONDS
    assert served_judge.load().settings.call_seconds < CALL_SECONDS
    assert served_judge.identity() == ScorerSpec(name="qwenvl").identity()
    given = ScorerSpec.model_validate({"name": "qwenvl", "timeout": 900, "call_seconds": 800})
    assert for_requests(given) == given
    assert for_requests(ScorerSpec(name="jpeg")).settings == {}
    with pytest.raises(FlowOPDError, match="call_seconds: 540, and is given up after timeout: 120"):
        for_requests(ScorerSpec.model_validate({"name": "qwenvl", "call_seconds": 540})).load()


def test_failures_are_failures_here_too() -> None:
    """An evaluation that would end with the scorer here ends with it elsewhere."""
    own = [PromptRecord("x", "a"), PromptRecord("raises", "a")]
    with served(Fussy()) as url, remote(url, declares={**EXACT, "tasks": ["a", "b"]}) as asked:
        found = asked.score(pictures(2), own)
        for scorer in (Fussy(), asked):
            begun = begin_scoring([scorer], pictures(2), own, [1, 1], [0, 1])
            with pytest.raises(FlowOPDError, match="failed on an image of the prompt 'raises'"):
                begun.result()
    assert [isinstance(one, Failed) for one in found] == [False, True]


def test_a_call_in_another_thread_ends_when_it_is_closed() -> None:
    scorer, found = Slow(), list[str]()

    def call() -> None:
        try:
            asked.score(pictures(1), records(1))
        except UnavailableError as error:
            found.append(str(error))

    with served(scorer) as url, remote(url) as asked:
        thread = threading.Thread(target=call)
        thread.start()
        assert scorer.started.wait(20)
        asked.close()
        thread.join(20)
        assert not thread.is_alive()
        scorer.go.set()
        assert values(asked.score(pictures(2), records(2))) == exact(2)
    assert found == ["The scorer 'exact': It was closed while it was at work."]


class TestTheCheck:
    def test_goes_on_without_those_that_are_away(self, capsys: pytest.CaptureFixture[str]) -> None:
        with served(Fussy()) as url, contextlib.ExitStack() as stack:
            away = stack.enter_context(served(Fussy()))
            with remote(url, away, declares={**EXACT, "tasks": ["a", "b"]}) as scorer:
                scorer.load()
                stack.close()
                findings = scorer.self_check()
        assert [one.what for one in findings] == [f"{url}: red", f"{url}: blue"]
        assert f"{away}: " in capsys.readouterr().err

    def test_goes_on_where_there_is_nothing_to_be_found(self) -> None:
        away = f"http://127.0.0.1:{free_port()}"
        with served(Exact()) as url, remote(url, away) as scorer:
            assert scorer.self_check() == []

    def test_finds_that_none_answers(self) -> None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(served(Exact()))
            with remote(url) as scorer:
                scorer.load()
                stack.close()
                (finding,) = scorer.self_check()
        assert not finding.good

    def test_waits_for_one_that_is_busy(self) -> None:
        class Checked(Slow):
            def self_check(self) -> list[Finding]:
                return [Finding("red", 1.0, "above 0", True)]

        scorer = Checked()
        body = request_body(pictures(1), records(1))
        with served(scorer, Limits(queue=1)) as url, remote(url) as asked:
            holder = threading.Thread(target=ask, args=(url, "POST", "/score", body))
            holder.start()
            assert scorer.started.wait(20)
            threading.Timer(0.3, scorer.go.set).start()
            (finding,) = asked.self_check()
            holder.join()
        assert finding.good


def test_a_server_of_lower_limits_that_comes_up_gets_smaller_requests() -> None:
    port, patient, small = free_port(), Slow(), Exact()
    url = f"http://127.0.0.1:{port}"
    with served(patient) as large, remote(large, url, batch_size=8, patience=60) as asked:
        asked.load()
        with served(small, Limits(batch=2), port=port):
            threading.Thread(target=_go_after, args=(patient, small)).start()
            found = asked.score(pictures(64), records(64))
    assert values(found) == exact(64)
    assert 0 < max(small.calls) <= 2
    assert max(patient.calls) == 8


def _go_after(held: Slow, other: Exact) -> None:
    while not other.calls:
        time.sleep(0.005)
    held.go.set()


def test_settings_can_be_declared() -> None:
    identity = {"model": "owner/other"}
    with served(Exact(), identity=identity) as url:
        with remote(url, declares={**EXACT, "settings": identity}) as scorer:
            scorer.load()
        with remote(url) as scorer, pytest.raises(FlowOPDError) as caught:
            scorer.load()
    assert "its settings is {'model': 'owner/other'}, and should be {}" in str(caught.value)
    given = {"declares": {**EXACT, "settings": identity}}
    assert build(RemoteSettings, given).identity()["declares"]["settings"] == identity


def test_a_group_is_the_pictures_of_a_prompt_as_it_is_here() -> None:
    class Grouped(Exact):
        grouped = True

        def score(self, images: np.ndarray, own: Sequence[PromptRecord]) -> list[Scores]:
            return [Scores({"exact": float(len(own)), "length": math.pi}) for _ in own]

    own = [PromptRecord("p", "a", f"tag {i}") for i in range(4)]
    with served(Grouped()) as url, remote(url, declares={**EXACT, "grouped": True}) as scorer:
        assert {one.values["exact"] for one in scorer.score(pictures(4), own)} == {4.0}
