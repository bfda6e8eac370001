"""`deqa`: the scorer here, and its stand-alone server, with a stub in place of the weights."""

import ast
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
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
    assert "flowopd_reward_missing_total 2\n" in text


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
    import threading

    class Waiting(Model):
        go = threading.Event()

        def score(self, images: list[Any]) -> list[float]:
            self.go.wait(20)
            return [3.0] * len(images)

    body = request_body(pictures(1), records(1))
    with served_script({"queue": 1}, model=Waiting()) as url:
        first = threading.Thread(target=ask, args=(url, "POST", "/score", body))
        first.start()
        for _ in range(500):
            if "requests_total 1" in ask(url, "GET", "/metrics")[1]:
                break
        assert ask(url, "POST", "/score", body)[0] == 429
        Waiting.go.set()
        first.join()
        assert ask(url, "POST", "/score", body)[0] == 200


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
        with deqa(line.split()[-1]) as scorer:
            (score,) = scorer.score(np.asarray(Image.new("RGB", (8, 8)))[None], records(1))
        assert score.values == {"deqa": 1.0}
    finally:
        process.kill()
        process.communicate()
