"""A scorer behind HTTP: what it answers, whom, and how it says no."""

import base64
import dataclasses
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Exact, Fussy, Slow, ask, pictures, records, served

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, MetricInfo, Scores
from flowopd.rewards.service.images import encode
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.wire import read_reply, request_body
from flowopd.rewards.settings import ScorerSettings, ScorerSpec
from flowopd.rewards.work.runners import runners_of
from flowopd.tasks.prompts import PromptRecord

KEY = "a-token-of-24-characters"


def items(*prompts: str, size: int = 8, task: str = "a") -> dict[str, Any]:
    image = base64.b64encode(encode(pictures(1, size)[0])).decode()
    return {"items": [{"image": image, "prompt": prompt, "task": task} for prompt in prompts]}


class TestAnswers:
    def test_are_the_scorers_to_the_last_bit(self) -> None:
        images, own = pictures(7, size=31), records(7, text="é")
        with served(Exact()) as url:
            status, reply = ask(url, "POST", "/score", request_body(images, own))
        assert status == 200
        expected = Exact().score(images, own)
        assert [one["values"] for one in reply["scores"]] == [one.values for one in expected]
        assert reply["scores"][1]["detail"] == {
            "shape": [31, 33, 3],
            "tag": "tag 1",
            "meta": {"text": "é"},
        }

    def test_say_what_is_missing_and_why(self) -> None:
        with served(Exact()) as url:
            body = request_body(pictures(1), records(1, blind=True))
            _, reply = ask(url, "POST", "/score", body)
        assert reply["scores"][0]["values"] == {"exact": None, "length": 1.0}
        assert reply["scores"][0]["reasons"] == {"exact": "it is blind"}

    def test_are_in_the_order_of_the_pictures_whatever_their_sizes(self) -> None:
        images = [pictures(1, size, seed=size)[0] for size in (8, 5, 8, 12, 5)]
        own = records(5)
        scorer = Exact()
        with served(scorer) as url:
            _, reply = ask(url, "POST", "/score", request_body(images, own))
        alone = [
            Exact().score(image[None], [one])[0] for image, one in zip(images, own, strict=True)
        ]
        assert [one["values"] for one in reply["scores"]] == [one.values for one in alone]
        assert scorer.calls == [2, 2, 1]

    def test_of_a_grouped_scorer_are_of_one_size(self) -> None:
        scorer = Exact()
        scorer.grouped = True  # type: ignore[misc]
        with served(scorer) as url:
            images = [pictures(1, size)[0] for size in (8, 5)]
            status, reply = ask(url, "POST", "/score", request_body(images, records(2)))
            assert (status, "not of one size" in reply["error"]) == (422, True)
            status, _ = ask(url, "POST", "/score", request_body(images[:1], records(1)))
            assert status == 200

    def test_describe_the_scorer(self) -> None:
        with served(Fussy(), Limits(batch=5), identity={"model": "owner/name"}) as url:
            status, about = ask(url, "GET", "/about")
        assert status == 200
        assert (about["name"], about["version"], about["grouped"]) == ("exact", 3, False)
        assert about["metrics"][1] == {
            "name": "length",
            "low": 0,
            "high": 1e9,
            "strata": False,
            "scale": 10,
        }
        assert about["tasks"] == ["a", "b"]
        assert about["identity"] == {"model": "owner/name"}
        assert about["about"] == {"models": ["owner/exact"], "licence": "MIT", "cost": "nothing"}
        assert about["limits"]["batch"] == 5

    def test_to_a_check_are_what_the_scorer_found(self) -> None:
        with served(Fussy()) as url:
            status, reply = ask(url, "POST", "/check")
        assert status == 200
        assert reply["findings"] == [
            {"what": "red", "value": 0.25, "expected": "above 0.2", "good": True},
            {"what": "blue", "value": None, "expected": "a value", "good": False},
        ]
        with served(Exact()) as url:
            assert ask(url, "POST", "/check") == (200, {"findings": []})

    def test_name_the_server_until_it_is_started_again(self) -> None:
        names = []
        for _ in range(2):
            with served(Exact()) as url:
                _, about = ask(url, "GET", "/about")
                for _ in range(2):
                    _, reply = ask(url, "POST", "/score", items("x"))
                    assert reply["instance"] == about["instance"]
            names.append(about["instance"])
        assert len(set(names)) == 2

    def test_count_what_was_done(self) -> None:
        with served(Fussy()) as url:
            ask(url, "POST", "/score", items("x", "nan", "y"))
            ask(url, "POST", "/score", items("x", "raises"))
            ask(url, "POST", "/score", b"{")
            ask(url, "GET", "/secret/path")
            status, text = ask(url, "GET", "/metrics")
        assert status == 200
        numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert float(numbers["flowopd_reward_images_total"]) == 5
        assert float(numbers["flowopd_reward_missing_total"]) == 3
        assert float(numbers["flowopd_reward_failures_total"]) == 1
        assert float(numbers['flowopd_reward_requests_total{path="/score",status="200"}']) == 2
        assert float(numbers['flowopd_reward_requests_total{path="/score",status="422"}']) == 1
        assert float(numbers['flowopd_reward_requests_total{path="other",status="404"}']) == 1
        assert float(numbers["flowopd_reward_requests_in_flight"]) == 0
        assert float(numbers["flowopd_reward_resident_memory_bytes"]) > 1e6
        for line in text.splitlines():
            assert re.fullmatch(
                r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \S+', line
            )


class TestFailures:
    def test_of_the_scorer_cost_only_the_pictures_that_they_are_about(self) -> None:
        with served(Fussy()) as url:
            status, reply = ask(url, "POST", "/score", items("x", "raises", "y"))
        values = [one["values"] for one in reply["scores"]]
        assert status == 200
        assert [value["length"] for value in values] == [1.0, None, 1.0]
        assert "no memory left" in reply["scores"][1]["reasons"]["exact"]
        assert "no memory left" in reply["scores"][1]["reasons"]["length"]
        assert [one["failed"] for one in reply["scores"]] == [False, True, False]

    @pytest.mark.parametrize("value", ["abc", "x" * 5000, [1.0], {}, 10**400, 1 + 2j])
    def test_are_values_of_any_kind(self, value: Any) -> None:
        class Odd(Exact):
            def _one(self, image: Any, record: Any) -> Scores:
                return Scores({"exact": value, "length": np.float32(2)}, {"exact": "as it is"})

        with served(Odd()) as url:
            status, reply = ask(url, "POST", "/score", items("x"))
        assert status == 200
        (score,) = reply["scores"]
        assert score["values"] == {"exact": None, "length": 2.0}
        assert score["reasons"]["exact"].endswith("which is no number")
        assert len(score["reasons"]["exact"]) < 200
        assert not score["failed"]

    def test_are_results_that_are_no_scores(self) -> None:
        class Odd(Exact):
            def _one(self, image: Any, record: Any) -> Any:
                return dataclasses.asdict(super()._one(image, record))

        with served(Odd()) as url:
            status, reply = ask(url, "POST", "/score", items("x"))
        assert (status, reply["scores"][0]["failed"]) == (200, True)
        assert "gave dict, and no Scores" in reply["scores"][0]["reasons"]["length"]

    def test_are_values_that_are_no_numbers_and_results_that_are_missing(self) -> None:
        with served(Fussy()) as url:
            _, reply = ask(url, "POST", "/score", items("nan", "inf", "x"))
            first, second, third = reply["scores"]
            assert first["values"] == {"exact": None, "length": 2.0}
            assert first["reasons"] == {"exact": "the scorer gave nan, which is no number"}
            assert second["reasons"] == {"exact": "the scorer gave -inf, which is no number"}
            assert third["values"]["exact"] is not None
            status, reply = ask(url, "POST", "/score", items("short"))
            assert status == 200
            assert "0 results for 1" in reply["scores"][0]["reasons"]["exact"]

    def test_to_come_back_make_the_server_unhealthy_until_it_does(self) -> None:
        scorer = Slow()
        with served(scorer, timeout=0.2) as url:
            status, reply = ask(url, "POST", "/score", items("x"))
            assert (status, reply["error"][:31]) == (503, "The scorer does not come back: ")
            assert ask(url, "GET", "/healthz")[0] == 503
            assert ask(url, "POST", "/score", items("x"))[0] == 503
            scorer.go.set()
            assert _eventually(lambda: ask(url, "GET", "/healthz") == (200, {"status": "ok"}))
            assert ask(url, "POST", "/score", items("x"))[0] == 200

    def test_of_a_check_are_findings(self) -> None:
        class Broken(Exact):
            def self_check(self) -> Any:
                raise RuntimeError("the weights are gone")

        with served(Broken()) as url:
            status, reply = ask(url, "POST", "/check")
        assert status == 200
        assert "the weights are gone" in reply["findings"][0]["what"]
        assert reply["findings"][0]["good"] is False


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 404),
            ("GET", "/docs", 404),
            ("GET", "/score", 405),
            ("DELETE", "/score", 405),
            ("POST", "/about", 405),
            ("PATCH", "/nowhere", 404),
        ],
    )
    def test_of_paths_and_methods(self, method: str, path: str, status: int) -> None:
        with served(Exact()) as url:
            found, reply = ask(url, method, path)
        assert found == status
        assert path in reply["error"]

    def test_of_bodies_that_are_no_json(self) -> None:
        with served(Exact()) as url:
            for kind in ("text/plain", "multipart/form-data; boundary=x", ""):
                status, reply = ask(url, "POST", "/score", b"{}", {"Content-Type": kind})
                assert (status, "has to be JSON" in reply["error"]) == (415, True)
            kind = "Application/JSON; charset=utf-8"
            assert ask(url, "POST", "/score", items("x"), {"Content-Type": kind})[0] == 200

    def test_of_records_that_the_scorer_does_not_read(self) -> None:
        with served(Fussy()) as url:
            status, reply = ask(url, "POST", "/score", items("x", task="other"))
            assert (status, "of the task 'other'" in reply["error"]) == (422, True)
            status, reply = ask(url, "POST", "/score", items("x", "refused"))
            assert (status, "it is refused" in reply["error"]) == (422, True)

    def test_of_records_that_its_check_falls_over(self) -> None:
        """What a client sends as a record is anything."""

        class Careless(Exact):
            def check(self, record: PromptRecord) -> None:
                record.meta["text"].lower()

        with served(Careless()) as url:
            for meta in ({}, {"text": 1}, {"text": None}, {"text": ["x"]}):
                body = {"items": [{**items("x")["items"][0], "meta": meta}]}
                status, reply = ask(url, "POST", "/score", body)
                assert (status, "cannot read the prompt 'x'" in reply["error"]) == (422, True)

    def test_are_short_whatever_was_sent(self) -> None:
        with served(Fussy()) as url:
            for kind in ("x" * 15_000, "“" * 15_000):
                status, reply = ask(url, "POST", "/score", items(kind, task="other"))
                assert (status, len(reply["error"]) < 1001) == (422, True)
            body = items("refused")
            body["items"][0]["meta"] = {"key" * 9000: "x" * 30_000}
            status, reply = ask(url, "POST", "/score", body)
            assert (status, len(reply["error"]) < 1001) == (422, True)

    def test_of_web_pages(self) -> None:
        """A page of any site can have a browser send such a request; it says where it is from."""
        with served(Fussy()) as url:
            for method, path in (("POST", "/check"), ("GET", "/about"), ("GET", "/healthz")):
                for origin in ("https://evil.example", "null", "http://localhost:8888"):
                    status, reply = ask(url, method, path, headers={"Origin": origin})
                    assert (status, "no web page" in reply["error"]) == (403, True)
        with served(Fussy(), token=KEY) as url:
            right = {"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"}
            assert ask(url, "GET", "/about", headers=right)[0] == 200


class TestTokens:
    def test_are_needed_for_all_but_the_health(self) -> None:
        with served(Exact(), token=KEY) as url:
            right = {"Authorization": f"Bearer {KEY}"}
            for method, path in (("GET", "/about"), ("GET", "/metrics"), ("GET", "/openapi.json")):
                assert ask(url, method, path)[0] == 401
                assert ask(url, method, path, headers=right)[0] == 200
            assert ask(url, "POST", "/score", items("x"))[0] == 401
            assert ask(url, "POST", "/score", items("x"), right)[0] == 200
            assert ask(url, "GET", "/healthz")[0] == 200

    @pytest.mark.parametrize(
        "given",
        [
            "",
            "Bearer",
            f"Basic {KEY}",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY} x",
            KEY,
        ],
    )
    def test_have_to_be_right(self, given: str) -> None:
        with served(Exact(), token=KEY) as url:
            status, reply = ask(url, "GET", "/about", headers={"Authorization": given})
        assert (status, "token" in reply["error"]) == (401, True)
        assert KEY not in reply["error"]

    def test_are_asked_for_before_the_body_is_read(self) -> None:
        with served(Exact(), Limits(body=2000), token=KEY) as url:
            assert ask(url, "POST", "/score", b"x" * 5000)[0] == 401

    def test_make_other_names_of_the_machine_right(self) -> None:
        """Without, a web page that has its name point here could reach the server."""
        with served(Exact()) as url:
            for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
                assert ask(url, "GET", "/about", headers={"Host": name})[0] == 403
            for name in ("127.0.0.1.nip.io", "10.0.0.1", "[::2]:80", "1", ""):
                assert ask(url, "GET", "/about", headers={"Host": name})[0] == 403
            for name in (
                *("localhost", "LOCALHOST:9", "127.0.0.1:1234", "[::1]:80", "[::1]"),
                *("127.1.2.3", "127.0.1.1:8100"),
            ):
                assert ask(url, "GET", "/about", headers={"Host": name})[0] == 200
        with served(Exact(), token=KEY) as url:
            right = {"Authorization": f"Bearer {KEY}", "Host": "gpu7.example"}
            assert ask(url, "GET", "/about", headers=right)[0] == 200


class TestBackpressure:
    def test_more_requests_than_the_queue_is_long_are_told_to_come_back(self) -> None:
        scorer = Slow()
        found: list[int] = []
        with served(scorer, Limits(queue=2)) as url:

            def one() -> None:
                found.append(ask(url, "POST", "/score", items("x"))[0])

            threads = [threading.Thread(target=one) for _ in range(2)]
            for thread in threads:
                thread.start()
            assert _eventually(lambda: "in_flight 2.0" in ask(url, "GET", "/metrics")[1])
            status, reply = ask(url, "POST", "/score", items("x"))
            assert (status, "come back" in reply["error"]) == (429, True)
            assert ask(url, "POST", "/check")[0] == 429
            assert ask(url, "GET", "/healthz")[0] == 200
            scorer.go.set()
            for thread in threads:
                thread.join()
            assert found == [200, 200]
            assert ask(url, "POST", "/score", items("x"))[0] == 200

    def test_the_scorer_is_called_by_one_request_at_a_time(self) -> None:
        running: list[int] = []

        class Alone(Slow):
            def score(self, images: Any, records: Any) -> list[Scores]:
                running.append(1)
                assert len(running) == 1
                scores = super().score(images, records)
                running.pop()
                return scores

        with served(Alone(seconds=0.02)) as url:
            found: list[Any] = []

            def one() -> None:
                found.append(ask(url, "POST", "/score", items("x"))[1]["scores"][0]["reasons"])

            threads = [threading.Thread(target=one) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [{}] * 6

    def test_whoever_hangs_up_is_not_scored(self) -> None:
        import http.client

        scorer = Slow()
        with served(scorer) as url:
            first = threading.Thread(target=ask, args=(url, "POST", "/score", items("first")))
            first.start()
            assert scorer.started.wait(10)
            gone = http.client.HTTPConnection(url.removeprefix("http://"))
            body = request_body(pictures(1), [PromptRecord("gone")])
            gone.request("POST", "/score", body, {"Content-Type": "application/json"})
            assert _eventually(lambda: "in_flight 2.0" in ask(url, "GET", "/metrics")[1])
            gone.close()
            scorer.go.set()
            first.join()
            assert ask(url, "POST", "/score", items("last"))[0] == 200
        assert scorer.seen == ["first", "last"]


class Apart:
    """Works in a process of its own; what it does there, the prompt says."""

    name, version, tasks, grouped, workers = "apart", 1, None, False, "processes"
    metrics = (MetricInfo("level"),)

    class Settings(ScorerSettings):
        weights: str

    def __init__(self, settings: Settings) -> None:
        self.weights = Path(settings.weights)

    def load(self) -> None:
        if not self.weights.exists():
            raise FlowOPDError(f"There are no weights {self.weights.name}.")

    def self_check(self) -> list[Finding]:
        return [Finding("nothing", 0.0, "0", True)]

    def score(self, images: Any, records: Any) -> list[Scores]:
        prompts = [record.prompt for record in records]
        if "ends" in prompts:
            os._exit(3)
        if "hangs" in prompts:
            threading.Event().wait(60)
        detail = {"what": threading.Lock()} if "unsendable" in prompts else {}
        return [Scores({"level": float(image.mean())}, detail=detail) for image in images]


class TestScorersInProcesses:
    @pytest.fixture
    def apart(self, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        """The address of a server of one, and the file without which it cannot be loaded."""
        weights = tmp_path / "weights"
        weights.touch()
        given = {"name": f"{__file__}:Apart", "processes": 1, "weights": str(weights)}
        spec = build(ScorerSpec, given)
        scorer = spec.load()
        with served(scorer, timeout=3.0, runners=runners_of(spec, scorer)) as url:
            yield url, weights

    def test_answer_like_others(self, apart: tuple[str, Path]) -> None:
        url, _ = apart
        images = pictures(2)
        _, reply = ask(url, "POST", "/score", request_body(images, records(2)))
        assert [one["values"]["level"] for one in reply["scores"]] == [i.mean() for i in images]
        assert ask(url, "POST", "/check")[1]["findings"][0]["what"] == "nothing"

    def test_have_no_scores_for_what_cannot_be_sent(self, apart: tuple[str, Path]) -> None:
        url, _ = apart
        status, reply = ask(url, "POST", "/score", items("x", "unsendable"))
        assert (status, [one["failed"] for one in reply["scores"]]) == (200, [True, True])
        assert "cannot be sent" in reply["scores"][0]["reasons"]["level"]
        assert ask(url, "GET", "/healthz")[0] == 200
        assert ask(url, "POST", "/score", items("x"))[1]["scores"][0]["failed"] is False

    @pytest.mark.parametrize("prompt", ["ends", "hangs"])
    def test_are_started_again(self, apart: tuple[str, Path], prompt: str) -> None:
        url, _ = apart
        status, reply = ask(url, "POST", "/score", items(prompt))
        assert (status, "does not come back" in reply["error"]) == (503, True)
        assert ask(url, "GET", "/healthz")[0] == 503
        assert ask(url, "POST", "/score", items("x"))[0] == 200
        assert ask(url, "GET", "/healthz")[0] == 200

    def test_are_unhealthy_while_they_cannot_be_loaded(self, apart: tuple[str, Path]) -> None:
        url, weights = apart
        weights.unlink()
        assert ask(url, "POST", "/score", items("ends"))[0] == 503
        for path, body in (("/score", items("x")), ("/check", None), ("/score", items("x"))):
            status, reply = ask(url, "POST", path, body)
            assert (status, "no weights" in reply["error"]) == (503, True)
            assert ask(url, "GET", "/healthz")[0] == 503
        weights.touch()
        assert _eventually(lambda: ask(url, "GET", "/healthz")[0] == 200)
        assert ask(url, "POST", "/score", items("x"))[0] == 200


def test_a_reply_can_be_read_back() -> None:
    with served(Exact()) as url:
        import http.client

        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        body = request_body(pictures(2), records(2))
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        content = connection.getresponse().read()
        connection.close()
    found = read_reply(content).scores
    expected = Exact().score(pictures(2), records(2))
    assert [one.values for one in found] == [one.values for one in expected]


def _eventually(condition: Any, seconds: float = 15.0) -> bool:
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        pause.wait(0.02)
    return False
