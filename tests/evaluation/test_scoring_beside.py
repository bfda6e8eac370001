"""An evaluation's pictures are scored while the next are drawn; a scorer that fails ends it."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import BrightScorer
from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation import drawing as module
from flowopd.evaluation.protocol import EvalConfig
from flowopd.evaluation.run import evaluate, prepare
from flowopd.policy.generate import generate
from flowopd.rewards.scorer import Scores

pytestmark = pytest.mark.usefixtures("fake_plugins")
Prompts = list[str]


def run(protocol: Path, out: Path, *overrides: str) -> dict[str, Any]:
    options = {"model": {"family": "fake"}, "out": out}
    return evaluate(prepare(load_config(EvalConfig, protocol, overrides, options=options)))[0]


def lines_of(out: Path) -> list[dict[str, Any]]:
    text = (out / "scores" / "base.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def scores_by(monkeypatch: pytest.MonkeyPatch, before: Callable[[Prompts], None]) -> None:
    """The brightness, after doing something."""
    inner = BrightScorer.score

    def score(self: Any, images: Any, records: Any) -> list[Scores]:
        before([record.prompt for record in records])
        return inner(self, images, records)

    monkeypatch.setattr(BrightScorer, "score", score)


def test_a_batch_is_scored_while_the_next_is_drawn(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call waits for the second batch, which so has not waited for the first call."""
    expected = run(protocol, tmp_path / "before")
    drawn, waited = threading.Event(), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        for number, batch in enumerate(generate(*args, **kwargs)):
            if number == 1:
                drawn.set()
            yield batch

    monkeypatch.setattr(module, "generate", counted)
    scores_by(monkeypatch, lambda _: waited.append(drawn.wait(10)))
    row = run(protocol, tmp_path / "out")
    assert len(waited) > 1
    assert all(waited)
    assert row["metrics"] == expected["metrics"]
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "before")


def test_a_scorer_that_fails_ends_it_and_what_was_scored_is_kept(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(protocol, tmp_path / "whole")

    def fail(prompts: Prompts) -> None:
        if "an x" in prompts:
            raise ValueError("it cannot")

    with monkeypatch.context() as patched:
        scores_by(patched, fail)
        with pytest.raises(FlowOPDError) as caught:
            run(protocol, tmp_path / "out", "scorers=[bright]", "batch_size=2")
    assert str(caught.value) == (
        "The scorer 'bright' failed on an image of the prompt 'an x': ValueError: it cannot. What "
        "was scored until now is kept; the same command goes on from there."
    )
    assert [line["prompt"] for line in lines_of(tmp_path / "out")].count("an x") == 0
    assert len(lines_of(tmp_path / "out")) == 10
    row = run(protocol, tmp_path / "out", "scorers=[bright]", "batch_size=2")
    assert row["metrics"]["level"] == whole["metrics"]["level"]
    assert len(lines_of(tmp_path / "out")) == 14


def test_so_does_one_that_does_not_answer(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, waited = threading.Event(), list[bool]()
    scores_by(monkeypatch, lambda _: waited.append(go.wait(20)))
    spec = "scorers=[{name: bright, timeout: 0.2}]"
    with pytest.raises(FlowOPDError, match=r"'bright' failed .* did not answer within 0\.2 s"):
        run(protocol, tmp_path / "out", spec)
    go.set()
