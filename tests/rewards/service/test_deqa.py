"""`deqa`: the scorer here, and its stand-alone server, with a stub in place of the weights."""

import ast
import contextlib
import re
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deqa_script import FOLDER, SCRIPT, script, served_script
from PIL import Image, ImageFilter
from served import ask, pictures, records

from flowopd import plugins
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import MetricInfo
from flowopd.rewards.service import wire
from flowopd.rewards.service.counters import HELP
from flowopd.rewards.service.deqa import DeQA, DeQASettings
from flowopd.rewards.service.wire import AboutReply, request_body
from flowopd.tasks.prompts import PromptRecord

KEY = "a-token-of-24-characters"


@contextlib.contextmanager
def deqa(*urls: str, **more: Any) -> Iterator[DeQA]:
    given = {"urls": list(urls), "patience": 1, **more}
    with contextlib.closing(DeQA(build(DeQASettings, given))) as scorer:
        yield scorer


class Model:
    """Scores by the mean level; raises at black, and has no number for white."""

    names = ("levels",)

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, images: list[Any]) -> list[float]:
        self.calls.append(len(images))
        levels = [float(np.asarray(image).mean()) for image in images]
        if 0.0 in levels:
            raise RuntimeError("it is too dark")
        return [float("nan") if level == 255 else 1 + level / 100 for level in levels]


class Waiting(Model):
    """Takes until it is let go, and remembers how many calls there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.started = threading.Event(), threading.Event()
        self.now = self.most = 0

    def score(self, images: list[Any]) -> list[float]:
        self.now += 1
        self.most = max(self.most, self.now)
        self.started.set()
        self.go.wait(30)
        self.now -= 1
        return [3.0] * len(images)


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def flat(*levels: int) -> np.ndarray:
    return np.stack([np.full((6, 6, 3), level, np.uint8) for level in levels])


def test_is_declared_without_a_server() -> None:
    scorer = plugins.load_scorer("deqa")
    assert scorer.metrics == (MetricInfo("deqa", 1, 5, scale=5),)
    assert (scorer.name, scorer.version, scorer.tasks, scorer.grouped) == ("deqa", 1, None, False)
    assert scorer.settings.urls == ["http://127.0.0.1:8101"]


def test_the_two_halves_agree_on_the_protocol() -> None:
    module = script()
    with served_script(model=Model()) as url:
        _, reply = ask(url, "GET", "/about")
    about = AboutReply.model_validate(reply)
    assert about.metric_infos == DeQA.metrics
    assert (about.name, about.version) == (DeQA.name, DeQA.version)
    assert DeQASettings().model == module.MODEL
    assert about.protocol == wire.PROTOCOL
    assert module.METRICS == HELP
    assert module.LONGEST["prompt"] == wire.LONGEST
    assert (module.LARGEST_META, module.PARTS) == (wire.LARGEST_META, wire.PARTS)


def test_scores_are_the_models_to_the_last_bit() -> None:
    model = Model()
    with served_script(model=model) as url, deqa(url, batch_size=3) as scorer:
        found = scorer.score(flat(10, 100, 200, 33), records(4))
    assert [one.values["deqa"] for one in found] == [1.1, 2.0, 3.0, 1.33]
    assert sorted(model.calls) == [1, 3]


def test_a_picture_that_the_model_fails_on_is_missing_and_no_other() -> None:
    with served_script(model=Model()) as url, deqa(url) as scorer:
        good, dark, bright = scorer.score(flat(50, 0, 255), records(3))
        text = ask(url, "GET", "/metrics")[1]
    assert good.values == {"deqa": 1.5}
    assert dark.values == {"deqa": None}
    assert "it is too dark" in dark.reasons["deqa"]
    assert bright.reasons == {"deqa": "the scorer gave nan, which is no number"}
    assert "flowopd_reward_missing_total 2.0\n" in text
    assert "flowopd_reward_failures_total 1.0\n" in text
    assert 'flowopd_reward_requests_total{path="/score",status="200"} 1.0\n' in text


def test_a_failure_is_told_from_a_value_that_is_missing() -> None:
    with served_script(model=Model()) as url:
        _, reply = ask(url, "POST", "/score", request_body(flat(50, 0, 255), records(3)))
    assert [one["failed"] for one in reply["scores"]] == [False, True, False]


def test_a_server_that_is_started_again_is_another() -> None:
    names = set()
    for _ in range(2):
        with served_script() as url:
            _, reply = ask(url, "POST", "/score", request_body(flat(50), records(1)))
            assert ask(url, "GET", "/about")[1]["instance"] == reply["instance"]
            names.add(reply["instance"])
    assert len(names) == 2


def test_its_check_compares_sharp_with_blurred() -> None:
    with served_script() as url, deqa(url) as scorer:
        (finding,) = scorer.self_check()
    assert finding.good
    assert finding.value is not None
    assert finding.value > 0

    class Contrary(Model):
        def score(self, images: list[Any]) -> list[float]:
            edges = [image.convert("L").filter(ImageFilter.FIND_EDGES) for image in images]
            return [5 - float(np.asarray(one).mean()) / 100 for one in edges]

    with served_script(model=Contrary()) as url, deqa(url) as scorer:
        (finding,) = scorer.self_check()
    assert not finding.good


def test_a_server_of_other_weights_is_refused() -> None:
    with (
        served_script() as url,
        deqa(url, model="owner/other") as scorer,
        pytest.raises(FlowOPDError, match="its settings is"),
    ):
        scorer.load()


def test_its_token_is_the_same() -> None:
    with served_script(token=KEY) as url:
        with deqa(url) as scorer, pytest.raises(FlowOPDError, match="answered 401"):
            scorer.load()
        right = {"Authorization": f"Bearer {KEY}"}
        body = request_body(pictures(1), [PromptRecord("x")])
        assert ask(url, "POST", "/score", body, right)[0] == 200


def test_requests_beyond_its_queue_are_told_to_come_back() -> None:
    body = request_body(pictures(1), records(1))
    model = Waiting()
    with served_script({"queue": 1}, model=model) as url:
        first = threading.Thread(target=ask, args=(url, "POST", "/score", body))
        first.start()
        assert model.started.wait(20)
        assert ask(url, "POST", "/score", body)[0] == 429
        assert ask(url, "GET", "/healthz")[0] == 200
        assert "in_flight 1.0" in ask(url, "GET", "/metrics")[1]
        model.go.set()
        first.join()
        assert eventually(lambda: "in_flight 0.0" in ask(url, "GET", "/metrics")[1])
        assert ask(url, "POST", "/score", body)[0] == 200


def test_its_model_is_called_by_one_request_at_a_time() -> None:
    body, model = request_body(pictures(1), records(1)), Waiting()
    with served_script(model=model) as url:
        asked = [("/score", body), ("/check", None), ("/score", body), ("/check", None)]
        threads = [threading.Thread(target=ask, args=(url, "POST", *one)) for one in asked]
        for thread in threads:
            thread.start()
        assert eventually(lambda: "in_flight 4.0" in ask(url, "GET", "/metrics")[1])
        model.go.set()
        for thread in threads:
            thread.join()
    assert model.most == 1


def test_a_model_that_does_not_come_back_makes_it_unhealthy_until_it_does() -> None:
    body, model = request_body(pictures(1), records(1)), Waiting()
    with served_script(model=model, timeout=0.2) as url:
        for path, sent in (("/score", body), ("/score", body), ("/check", None)):
            status, reply = ask(url, "POST", path, sent)
            assert (status, "does not come back" in reply["error"]) == (503, True)
        assert ask(url, "GET", "/healthz")[0] == 503
        model.go.set()
        assert eventually(lambda: ask(url, "GET", "/healthz")[0] == 200)
        assert eventually(lambda: ask(url, "POST", "/score", body)[0] == 200)


@pytest.mark.parametrize(
    ("model", "revision", "stub", "identity"),
    [
        (None, None, False, {}),
        (None, "0123abc", False, {"model": "zhiyuanyou/DeQA-Score-Mix3@0123abc"}),
        ("owner/other", None, False, {"model": "owner/other"}),
        ("owner/other", "main", False, {"model": "owner/other@main"}),
        (None, None, True, {"model": "stub"}),
        ("owner/other", "main", True, {"model": "stub"}),
    ],
)
def test_it_says_which_weights_it_has(
    model: str | None, revision: str | None, stub: bool, identity: dict[str, str]
) -> None:
    """As the scorer names them, so that it takes no others for its own."""
    given = Namespace(model=model or script().MODEL, revision=revision, stub=stub)
    assert script().identity_of(given) == identity
    if identity:
        assert DeQA(DeQASettings(**identity)).settings_served() == identity


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path), "--revision", "main"]
    refused = subprocess.run([*command, "--port", "0"], capture_output=True, text=True)
    assert (refused.returncode, "has no --revision" in refused.stderr) == (1, True)


def test_the_script_stands_alone() -> None:
    """It imports Python's own library and Pillow; torch and transformers with the weights only."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"PIL", "torch", "transformers"}


def test_what_it_needs_is_pinned() -> None:
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)
    assert {"torch", "transformers", "pillow"} <= {pin.partition("==")[0] for pin in pins}


def test_the_command_serves_and_refuses_an_open_door() -> None:
    command = [sys.executable, str(SCRIPT), "--stub", "--port", "0"]
    refused = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "give a token" in refused.stderr
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("deqa 1 (stub) is served at http://127.0.0.1:")
        with deqa(line.split()[-1]) as scorer, pytest.raises(FlowOPDError, match="settings is"):
            scorer.load()
        with deqa(line.split()[-1], model="stub") as scorer:
            (score,) = scorer.score(np.asarray(Image.new("RGB", (8, 8)))[None], records(1))
        assert score.values == {"deqa": 1.0}
    finally:
        process.kill()
        process.communicate()
