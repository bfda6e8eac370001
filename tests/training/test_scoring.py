"""Rewards while a run trains: beside the drawing, without what is missing, checked beforehand."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, Made, config_for, make

from fakes import FakeModel
from flowopd.errors import FlowOPDError
from flowopd.rewards.work import Jury
from flowopd.training.methods import grpo
from flowopd.training.record import read_lines
from flowopd.training.reward_check import RECORD, scorers_at_work
from flowopd.training.run import TrainPlan, prepare, train

pytestmark = pytest.mark.usefixtures("fake_plugins")

SCORED = {
    "grpo": ALGORITHMS["grpo"],
    "nft": ALGORITHMS["nft"],
    "mixed": ALGORITHMS["mixed"],
    "logged": {"name": "opd", "log_reward": True},
    "logged stored": {"name": "opd", "log_reward": True, "path": "stored"},
    "logged pg": {"name": "opd", "loss": "policy_gradient", "log_reward": True},
}
SCORER = """
import threading, time
from fakes import BrightScorer
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Finding, Scores

class Level(BrightScorer):
    metrics = BrightScorer.metrics[1:]

    def score(self, images, records):
        scores = [Scores({"level": s.values["level"]}) for s in super().score(images, records)]
        return [self.one(score, record) for score, record in zip(scores, records)]

    def one(self, score, record):
        return score

class Raises(Level):
    def one(self, score, record):
        if record.prompt.endswith(" eee"):
            raise ValueError("three letters")
        return score

class NaN(Level):
    def one(self, score, record):
        return Scores({"level": float("nan")}) if record.prompt.endswith(" eee") else score

class Hangs(Level):
    def one(self, score, record):
        if record.prompt.endswith(" eee"):
            time.sleep(60)
        return score

class Never(Level):
    def one(self, score, record):
        raise ValueError("nothing works")

class Grouped(Level):
    grouped = True

class Checked(Level):
    value = 1.0
    def self_check(self):
        return [Finding("a white picture", self.value, "1", self.value == 1.0)]

class Wrong(Checked):
    value = 0.25
"""


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    file = tmp_path / "level_scorers.py"
    file.write_text(SCORER)
    return file


def jury_of(plan: TrainPlan) -> Jury:
    return Jury(scorers_at_work(plan, main=True))


class TestBesideTheDrawing:
    @pytest.mark.parametrize("name", SCORED)
    @pytest.mark.parametrize("kind", ["Level", "Grouped"])
    def test_gradients_and_rewards_are_those_of_scoring_in_series(
        self, tmp_path: Path, scorer: Path, name: str, kind: str
    ) -> None:
        config = config_for(tmp_path, SCORED[name], scorers=[f"{scorer}:{kind}"])
        plan = prepare(config)
        alone = make(tmp_path / "alone", config)
        expected, logged = alone.gradient, alone.context.meter.take(alone.context.ranks)
        with jury_of(plan) as jury:
            beside = make(tmp_path / "beside", config)
            beside.context.reward, beside.context.jury = plan.reward, jury
            gradient = beside.gradient
        assert torch.equal(gradient, expected)
        assert beside.context.meter.take(beside.context.ranks) == logged
        assert {"reward/level", "task/shapes/reward", "missing_rewards"} <= set(logged)

    def test_a_part_is_scored_while_the_next_is_drawn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The scorer waits for the second part to be begun, which so has not waited for it."""
        from fakes import BrightScorer

        begun, waited = threading.Event(), []
        inner_store, inner_score = grpo.store, BrightScorer.score

        def store(method: Any, part: Any, *rest: Any, **keys: Any) -> Any:
            if part is not made.method.__dict__.setdefault("first", part):
                begun.set()
            return inner_store(method, part, *rest, **keys)

        def score(self: Any, *order: Any) -> Any:
            waited.append(begun.wait(10))
            return inner_score(self, *order)

        monkeypatch.setattr(grpo, "store", store)
        monkeypatch.setattr(BrightScorer, "score", score)
        config = config_for(tmp_path, ALGORITHMS["grpo"])
        plan = prepare(config)
        with jury_of(plan) as jury:
            made = make(tmp_path / "run", config)
            made.context.reward, made.context.jury = plan.reward, jury
            assert made.gradient.norm() > 0
        assert len(waited) > 1
        assert all(waited)


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    yield from read_lines(folder / "log.jsonl")


BATCH = {"prompts": 14, "images_per_prompt": 2, "micro": 4}  # every prompt is in every batch


class TestMissing:
    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("Raises", "level: ValueError: three letters"),
            ("NaN", "level: no number"),
        ],
    )
    def test_samples_that_cannot_be_scored_are_counted_and_the_run_goes_on(
        self,
        tmp_path: Path,
        scorer: Path,
        kind: str,
        reason: str,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        config = config_for(
            tmp_path, ALGORITHMS["grpo"], scorers=[f"{scorer}:{kind}"], batch=BATCH, updates=2
        )
        train(prepare(config), tmp_path / "run")
        lines = list(lines_of(tmp_path / "run"))
        assert [line["missing"] for line in lines] == [{reason: 4}] * 2
        assert [line["missing_rewards"] for line in lines] == [pytest.approx(4 / 28, abs=1e-6)] * 2
        said = capfd.readouterr().err
        assert said.count(f"4 of the 28 rewards of update 1 are missing: {reason} (4).") == 1
        assert "of update 2 are missing" not in said

    def test_pictures_that_are_not_finite_are_not_scored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As bytes they are black, and would have a reward like any other."""
        inner = FakeModel.decode

        def decode(self: FakeModel, latents: torch.Tensor) -> torch.Tensor:
            pictures = inner(self, latents).clone()
            pictures[0, 0, 0, 0] = float("nan")
            return pictures

        monkeypatch.setattr(FakeModel, "decode", decode)
        rewards = {"most_missing": 0.5}
        config = config_for(tmp_path, ALGORITHMS["grpo"], batch=BATCH, updates=1, rewards=rewards)
        train(prepare(config), tmp_path / "run")
        (line,) = lines_of(tmp_path / "run")
        assert line["missing"] == {"the picture is not made of finite numbers": 8}  # one a pass

    def test_they_teach_nothing_and_change_nothing_for_the_others(
        self, tmp_path: Path, scorer: Path
    ) -> None:
        """Their groups are left out, and no advantage of another group is made with them."""
        found = {}
        for kind in ("Level", "Raises"):
            config = config_for(
                tmp_path,
                ALGORITHMS["grpo"] | {"spread": "group", "kl": 0.0},
                scorers=[f"{scorer}:{kind}"],
                batch=BATCH,
            )
            made = make(tmp_path / kind, config)
            found[kind] = advantages_of(made)
        prompts = [sample.record.prompt for sample in made.batch().samples]
        lost = torch.tensor([prompt.endswith(" eee") for prompt in prompts])
        assert lost.sum() == 4
        assert not found["Raises"][lost].any()
        assert torch.equal(found["Raises"][~lost], found["Level"][~lost])
        assert found["Level"][lost].any()

    def test_a_scorer_that_hangs_costs_its_samples_only(self, tmp_path: Path, scorer: Path) -> None:
        """The calls behind it, too, until it comes back; here it never does."""
        spec = {"name": f"{scorer}:Hangs", "timeout": 0.3}
        config = config_for(
            tmp_path,
            ALGORITHMS["grpo"],
            scorers=[spec],
            batch=BATCH,
            updates=1,
            checkpoint={"every": 1},
            rewards={"most_missing": 0.95},
        )
        train(prepare(config), tmp_path / "run")
        (line,) = lines_of(tmp_path / "run")
        assert line["missing"].pop("level: it did not answer within 0.3 s") in (3, 4)
        assert set(line["missing"]) <= {"level: it is still at work on a call that was given up"}

    def test_with_too_many_the_run_ends_in_a_sentence(self, tmp_path: Path, scorer: Path) -> None:
        config = config_for(tmp_path, ALGORITHMS["grpo"], scorers=[f"{scorer}:Never"])
        with pytest.raises(FlowOPDError) as caught:
            train(prepare(config), tmp_path / "run")
        assert str(caught.value) == (
            "8 of the 8 rewards of update 1 are missing, more than rewards.most_missing allows "
            "(20%): level: ValueError: nothing works (8). Once the scorer is mended, the same "
            "command goes on from the last checkpoint."
        )

    def test_what_is_too_many_can_be_changed(self, tmp_path: Path, scorer: Path) -> None:
        keys = {"scorers": [f"{scorer}:Raises"], "batch": BATCH, "updates": 1}
        keys["checkpoint"] = {"every": 1}
        config = config_for(tmp_path, ALGORITHMS["nft"], rewards={"most_missing": 0.1}, **keys)
        with pytest.raises(FlowOPDError, match=r"^4 of the 28 .* are missing, more than"):
            train(prepare(config), tmp_path / "strict")
        config = config_for(tmp_path, ALGORITHMS["nft"], rewards={"most_missing": 0.15}, **keys)
        train(prepare(config), tmp_path / "patient")

    def test_rewards_that_are_only_logged_end_no_run(self, tmp_path: Path, scorer: Path) -> None:
        config = config_for(
            tmp_path, SCORED["logged"], scorers=[f"{scorer}:Never"], updates=1, checkpoint={}
        )
        train(prepare(config), tmp_path / "run")
        (line,) = lines_of(tmp_path / "run")
        assert line["missing"] == {"level: ValueError: nothing works": 8}

    def test_a_log_without_such_says_nothing(self, tmp_path: Path) -> None:
        train(prepare(config_for(tmp_path, ALGORITHMS["grpo"], updates=2)), tmp_path / "run")
        assert all("missing" not in line for line in lines_of(tmp_path / "run"))


def advantages_of(made: Made) -> torch.Tensor:
    """What an update's loss is made with."""
    found = []
    inner = made.method.task_advantages

    def noted(*order: Any, **keys: Any) -> Any:
        found.append(inner(*order, **keys))
        return found[-1]

    made.method.task_advantages = noted  # type: ignore[method-assign]
    assert made.gradient.norm() > 0
    return found[0].values


class TestCheck:
    def records(self, folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / RECORD).read_text().splitlines()]

    def test_a_scorer_that_reads_wrong_keeps_the_run_from_beginning(
        self, tmp_path: Path, scorer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fakes import FakeConfig

        monkeypatch.setattr(FakeConfig, "open", lambda self: pytest.fail("it was opened"))
        config = config_for(tmp_path, {"name": "grpo"}, scorers=[f"{scorer}:Wrong"])
        with pytest.raises(FlowOPDError) as caught:
            train(prepare(config), tmp_path / "run")
        assert str(caught.value) == (
            "The reward check failed: bright: a white picture gave 0.25, expected 1. Nothing was "
            "begun; mend the scorer, or go on without the check (--skip-reward-check)."
        )
        assert not (tmp_path / "run" / "log.jsonl").exists()

    def test_what_was_found_is_noted(self, tmp_path: Path, scorer: Path) -> None:
        config = config_for(
            tmp_path,
            ALGORITHMS["grpo"],
            scorers=[f"{scorer}:Checked"],
            updates=1,
            checkpoint={"every": 1},
        )
        for _ in range(2):
            train(prepare(config), tmp_path / "run")
        finding = {"what": "a white picture", "value": 1.0, "expected": "1", "good": True}
        line = {"skipped": False, "findings": [{"scorer": "bright", **finding}]}
        assert self.records(tmp_path / "run") == [line, line]

    def test_it_can_be_skipped_and_that_is_noted_too(
        self, tmp_path: Path, scorer: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        keys = {"scorers": [f"{scorer}:Wrong"], "updates": 1, "checkpoint": {"every": 1}}
        config = config_for(tmp_path, ALGORITHMS["grpo"], check_rewards=False, **keys)
        train(prepare(config), tmp_path / "run")
        assert self.records(tmp_path / "run") == [{"skipped": True}]
        assert "warning: the reward check is skipped." in capfd.readouterr().err

    def test_scorers_that_nothing_reads_are_not_checked(self, tmp_path: Path, scorer: Path) -> None:
        config = config_for(
            tmp_path, ALGORITHMS["opd"], scorers=[f"{scorer}:Wrong"], updates=1, checkpoint={}
        )
        train(prepare(config), tmp_path / "run")
        assert not (tmp_path / "run" / RECORD).exists()

    def test_those_of_the_probe_are(self, tmp_path: Path, scorer: Path) -> None:
        words = tmp_path / "words.txt"
        words.write_text("one\n")
        probe = {
            "every": 1,
            "prompts": [{"path": str(words)}],
            "scorers": [f"{scorer}:Wrong"],
            "sampling": {},
        }
        config = config_for(tmp_path, ALGORITHMS["opd"], probe=probe, scorers=["bright"])
        with pytest.raises(FlowOPDError, match="The reward check failed"):
            train(prepare(config), tmp_path / "run")

    def test_one_scorer_for_rewards_and_probe_is_one(self, tmp_path: Path) -> None:
        words = tmp_path / "words.txt"
        words.write_text("one\n")
        probe = {"every": 1, "prompts": [{"path": str(words)}], "scorers": ["bright"]}
        config = config_for(tmp_path, ALGORITHMS["grpo"], probe=probe | {"sampling": {}})
        plan = prepare(config)
        assert plan.probe is not None
        assert plan.probe.scorers[0] is plan.scorers[0]
        assert len(scorers_at_work(plan, main=True)) == 1


class TestProbe:
    def test_a_scorer_that_fails_leaves_a_gap_in_its_curve(
        self, tmp_path: Path, scorer: Path
    ) -> None:
        words = tmp_path / "words.jsonl"
        words.write_text(json.dumps({"prompt": "one eee"}) + "\n" + json.dumps({"prompt": "two"}))
        probe = {"every": 1, "prompts": [{"path": str(words)}], "sampling": {"steps": 2}}
        for kind, expected in (("Raises", {"level"}), ("NaN", {"level"}), ("Never", set())):
            config = config_for(
                tmp_path,
                ALGORITHMS["opd"],
                probe=probe | {"scorers": [f"{scorer}:{kind}"]},
                updates=1,
                checkpoint={"every": 1},
            )
            train(prepare(config), tmp_path / kind)
            lines = read_lines(tmp_path / kind / "probe.jsonl")
            assert [set(line["scores"]) for line in lines] == [expected] * 2
