import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fakes import FakeModel, PickyScorer
from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation import drawing as module
from flowopd.evaluation.protocol import EvalConfig
from flowopd.evaluation.results import Row
from flowopd.evaluation.run import LOCK, evaluate, prepare
from flowopd.evaluation.score import begin_scoring
from flowopd.locks import locked
from flowopd.policy.generate import generate
from flowopd.tasks import PromptRecord
from flowopd.team import Alone

pytestmark = pytest.mark.usefixtures("fake_plugins")


def run(protocol: Path, out: Path, *overrides: str, **options: Any) -> dict[str, Row]:
    options = {"model": {"family": "fake"}, "out": out, **options}
    rows = evaluate(prepare(load_config(EvalConfig, protocol, overrides, options=options)))
    return {row["name"]: row for row in rows}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_and_results_of_the_base(protocol: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = run(protocol, out)
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"protocol", "rows"}
    assert results["rows"] == [rows["base"]]
    metrics = rows["base"]["metrics"]
    assert list(metrics) == ["bright", "bright/untagged", "bright/a", "bright/b", "level", "picky"]
    assert {"mean", "low", "high", "n"} <= set(metrics["level"])
    lines = lines_of(out / "scores" / "base.jsonl")
    assert [(line["prompt_index"], line["image_index"]) for line in lines] == [
        (i, k) for i in range(7) for k in range(2)
    ]
    assert [line["seed"] for line in lines] == list(range(5, 19))
    assert metrics["level"]["mean"] == pytest.approx(
        np.mean([line["scores"]["level"] for line in lines])
    )
    assert "| level |" in (out / "table.md").read_text()


def test_missing_values_are_counted_and_not_scored(protocol: Path, tmp_path: Path) -> None:
    rows = run(protocol, tmp_path / "out")
    picky = rows["base"]["metrics"]["picky"]
    lines = lines_of(tmp_path / "out" / "scores" / "base.jsonl")
    text = [line for line in lines if line["task"] == "text"]
    assert (picky["n"], picky["missing"]) == (4, 2)
    seen = [line["scores"]["picky"] for line in text if line["prompt"] != "an x"]
    assert picky["mean"] == pytest.approx(np.mean(seen))
    missing = next(line for line in text if line["prompt"] == "an x")
    assert missing["scores"]["picky"] is None
    assert missing["reasons"] == {"picky": "an x"}
    assert missing["detail"] == {"picky": {"saw": "x"}}
    assert all("picky" not in line["scores"] for line in lines if line["task"] == "compose")
    assert "(2 missing)" in (tmp_path / "out" / "table.md").read_text()


def test_strata_are_averaged_by_tag(protocol: Path, tmp_path: Path) -> None:
    metrics = run(protocol, tmp_path / "out")["base"]["metrics"]
    means = [metrics[f"bright/{tag}"]["mean"] for tag in ("a", "b", "untagged")]
    assert metrics["bright"]["mean"] == pytest.approx(np.mean(means))
    assert metrics["bright"]["low"] < metrics["bright"]["high"]


def test_a_grouped_scorer_sees_all_images_of_a_prompt(protocol: Path, tmp_path: Path) -> None:
    PickyScorer.calls.clear()
    run(protocol, tmp_path / "out", "batch_size=1")
    assert len(PickyScorer.calls) == 3
    assert all(len(call) == 2 and len(set(call)) == 1 for call in PickyScorer.calls)


def test_a_prompt_that_comes_twice_is_two_groups(protocol: Path, tmp_path: Path) -> None:
    twice = "prompts=[{path: words.txt, task: text}, {path: words.txt, task: text}]"
    for name, batch in (("one", 1), ("many", 64)):
        PickyScorer.calls.clear()
        run(protocol, tmp_path / name, twice, f"batch_size={batch}")
        assert [len(call) for call in PickyScorer.calls] == [2] * 6


SCORER = """
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import MetricInfo, Scores

class Mine:
    name, version, tasks, grouped = "mine", 1, None, False
    metrics = (MetricInfo("mine", 0, 1),)

    def check(self, record):
        if record.prompt == "an x":
            raise FlowOPDError("it is an x.")

    def score(self, images, records):
        return [Scores({"mine": VALUE}) for _ in records]
"""


def test_a_changed_scorer_file_is_another_protocol(protocol: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCORER.replace("VALUE", "0.25").replace('"an x"', '"nothing"'))
    scorers = f"scorers=['{file}:Mine']"
    assert run(protocol, tmp_path / "out", scorers)["base"]["metrics"]["mine"]["mean"] == 0.25
    file.write_text(SCORER.replace("VALUE", "0.75").replace('"an x"', '"nothing"'))
    with pytest.raises(FlowOPDError, match="results of another protocol"):
        run(protocol, tmp_path / "out", scorers)
    (tmp_path / "out" / "results.json").unlink()  # as if killed before the first row was whole
    with pytest.raises(FlowOPDError, match="scores of another protocol"):
        prepare_only(protocol, tmp_path / "out", scorers)


def test_records_are_checked_before_weights_load(protocol: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCORER.replace("VALUE", "0.25"))
    with pytest.raises(FlowOPDError, match="cannot score the prompt 'an x': it is an x"):
        prepare_only(protocol, tmp_path / "out", f"scorers=['{file}:Mine']")


def prepare_only(protocol: Path, out: Path, *overrides: str) -> None:
    options = {"model": {"family": "fake"}, "out": out}
    prepare(load_config(EvalConfig, protocol, overrides, options=options))


def test_images_can_be_asked_for_afterwards(protocol: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = run(protocol, out)
    assert not (out / "images").exists()
    assert run(protocol, out, "save_images=true") == rows
    saved = list((out / "images" / "base").iterdir())
    assert len(saved) == 14
    saved[0].unlink()
    again = run(protocol, out, "save_images=true")["base"]
    assert saved[0].exists()
    means = [row["metrics"]["level"]["mean"] for row in (again, rows["base"])]
    assert means[0] == pytest.approx(means[1])
    assert again["images"] == 14


def test_scores_of_other_model_settings_are_not_taken_over(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, another length of prompts: every image is drawn again."""
    run(protocol, tmp_path / "out")
    monkeypatch.setattr(FakeModel, "text_key", "another length", raising=False)
    drawn: list[str] = []
    real = FakeModel.encode_prompts

    def encode(model: FakeModel, prompts: Any) -> Any:
        drawn.extend(prompts)
        return real(model, prompts)

    monkeypatch.setattr(FakeModel, "encode_prompts", encode)
    run(protocol, tmp_path / "out")
    assert len(set(drawn) - {""}) == 7


def test_prompt_sets_may_have_their_own_number_of_images(protocol: Path, tmp_path: Path) -> None:
    sets = "prompts=[{path: words.txt, task: text}, {path: compose.jsonl, images_per_prompt: 5}]"
    rows = run(protocol, tmp_path / "out", sets, "batch_size=4")
    lines = lines_of(tmp_path / "out" / "scores" / "base.jsonl")
    assert [(line["prompt_index"], line["image_index"]) for line in lines] == [
        (i, k) for i, count in enumerate([2] * 3 + [5] * 4) for k in range(count)
    ]
    assert rows["base"]["metrics"]["level"]["n"] == 26
    assert run(protocol, tmp_path / "out", sets) == rows


def test_a_grouped_scorer_leaves_out_prompts_with_one_image(protocol: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match="set images_per_prompt to 2 or more"):
        run(protocol, tmp_path / "out", "images_per_prompt=1")
    both = "{path: words.txt, task: text}, {path: words.txt, task: text, images_per_prompt: 1}"
    picky = run(protocol, tmp_path / "out", f"prompts=[{both}]")["base"]["metrics"]["picky"]
    assert (picky["n"], picky["missing"]) == (4, 2)


def test_images_do_not_depend_on_the_batches(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "one", "batch_size=1")
    run(protocol, tmp_path / "many", "batch_size=64")
    one, many = (lines_of(tmp_path / name / "scores" / "base.jsonl") for name in ("one", "many"))
    assert one == many


def test_adapters_have_a_row_each(
    protocol: Path, tmp_path: Path, fake_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(protocol, tmp_path / "out", adapters={"mine.v1": fake_adapter})
    assert list(rows) == ["base", "mine.v1"]
    base, mine = rows["base"]["metrics"]["level"], rows["mine.v1"]["metrics"]["level"]
    assert base["mean"] != mine["mean"]
    assert rows["mine.v1"]["adapter"]["path"] == str(fake_adapter)
    assert len(rows["mine.v1"]["adapter"]["sha256"]) == 64
    assert "trained for guidance 3, and is sampled with 1" in rows["mine.v1"]["warnings"][0]
    assert "trained for guidance 3" in capsys.readouterr().err
    alone = run(protocol, tmp_path / "alone")
    assert alone["base"]["metrics"] == rows["base"]["metrics"]


def test_rows_merge_by_name_and_nothing_is_drawn_twice(
    protocol: Path, tmp_path: Path, fake_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def counted(model: Any, prompts: list[str], *args: Any, **kwargs: Any) -> Any:
        drawn.extend(prompts)
        return generate(model, prompts, *args, **kwargs)

    monkeypatch.setattr(module, "generate", counted)
    first = run(protocol, tmp_path / "out", adapters={"first": fake_adapter})
    assert len(drawn) == 28
    rows = run(protocol, tmp_path / "out", adapters={"second": fake_adapter})
    assert len(drawn) == 42
    assert list(rows) == ["base", "first", "second"]
    assert rows["first"] == first["first"]
    assert rows["second"]["metrics"] == first["first"]["metrics"]


def test_a_killed_run_is_continued(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(protocol, tmp_path / "whole")

    def killed(*args: Any, **kwargs: Any) -> Any:
        for number, batch in enumerate(generate(*args, **kwargs)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(module, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(protocol, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
    scores = tmp_path / "out" / "scores" / "base.jsonl"
    assert len(lines_of(scores)) == 8
    with scores.open("a") as file:
        file.write('{"prompt_index": 4, "protoc')  # cut off in the middle of a line
    assert run(protocol, tmp_path / "out")["base"]["metrics"] == whole["base"]["metrics"]
    assert lines_of(scores) == lines_of(tmp_path / "whole" / "scores" / "base.jsonl")


def test_half_a_prompt_is_drawn_again(protocol: Path, tmp_path: Path) -> None:
    whole = run(protocol, tmp_path / "out")
    scores = tmp_path / "out" / "scores" / "base.jsonl"
    kept = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(kept[:5]))
    assert run(protocol, tmp_path / "out")["base"]["metrics"] == whole["base"]["metrics"]
    assert scores.read_text() == "".join(kept)


def test_another_protocol_is_refused(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out")
    for change in ("steps=3", "seed=6", "limit=1", "guidance=2", "scorers=[bright]"):
        with pytest.raises(FlowOPDError, match="holds results of another protocol"):
            run(protocol, tmp_path / "out", change)
    (tmp_path / "out" / "results.json").unlink()
    with pytest.raises(FlowOPDError, match="holds scores of another protocol"):
        run(protocol, tmp_path / "out", "steps=3")


def test_what_changes_no_number_is_the_same_protocol(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out")
    moved = tmp_path / "moved"
    protocol.parent.rename(moved)
    run(moved / protocol.name, tmp_path / "out", "batch_size=5", "name=renamed")


def test_another_base_is_refused(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out")
    with pytest.raises(FlowOPDError, match="holds results of another base model"):
        run(protocol, tmp_path / "out", "model.seed=1")


def test_a_retrained_adapter_is_scored_again(
    protocol: Path, tmp_path: Path, fake_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(protocol, tmp_path / "out", adapters={"mine": fake_adapter})
    scores = tmp_path / "out" / "scores" / "mine.jsonl"
    before = scores.read_text()
    source = lines_of(scores)[0]["source"]
    scores.write_text(before.replace(source, "0" * 16).replace('"level": 0.', '"level": 0.0'))
    run(protocol, tmp_path / "out", adapters={"mine": fake_adapter})
    assert "was of other weights or settings of the model; started anew" in capsys.readouterr().err
    assert scores.read_text() == before


def test_two_at_once_in_one_folder_are_refused(protocol: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    held = f"The evaluation in {out} is being worked on by process {os.getpid()}"
    with locked(out / LOCK, ""), pytest.raises(FlowOPDError, match=re.escape(held)):
        run(protocol, out)
    assert not (out / "results.json").exists()
    assert list(run(protocol, out)) == ["base"]
    assert len(lines_of(out / "scores" / "base.jsonl")) == 14


def test_others_of_a_team_leave_the_lock_to_the_main_one(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = load_config(EvalConfig, protocol, options={"model": {"family": "fake"}, "out": out})
    plan, helper = prepare(config), Alone()
    helper.main = False
    monkeypatch.setattr(module.Drawing, "help", lambda _: None)
    with locked(out / LOCK, ""):
        assert evaluate(plan, team=helper) == []


def test_images_are_kept_if_asked(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out", "save_images=true")
    names = sorted(path.name for path in (tmp_path / "out" / "images" / "base").iterdir())
    assert len(names) == 14
    assert names[0] == "00000-00_seed5_a-cup-0.png"


def test_limit_is_per_set(protocol: Path, tmp_path: Path) -> None:
    rows = run(protocol, tmp_path / "out", "limit=2")
    assert rows["base"]["images"] == 8
    lines = lines_of(tmp_path / "out" / "scores" / "base.jsonl")
    assert {line["tag"] for line in lines if line["task"] == "compose"} == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("scorers=[brite]", "There is no scorer 'brite'. Did you mean 'bright'?"),
        ("scorers=[broken]", "cannot be imported"),
        ("scorers=[bright, bright]", "both give the metric 'bright'"),
        ("scorers=[]", "'scorers'"),
        ("prompts=[{path: none.txt}]", "There is no prompt file"),
        ("prompts=[{path: words.txt}]", "'picky' has nothing to score"),
        ("prompts=[{path: words.txt, tsk: a}]", "Did you mean 'prompts.0.task'?"),
        ("images_per_prompt=0", "'images_per_prompt' is 0"),
        ("adapters={base: x}", "cannot be called 'base'"),
        ("adapters={a/b: x}", "'adapters.a/b"),
        ("adapters={mine: none}", "No adapter at none"),
        ("model.refused=true", "This fake model cannot be opened"),
        ("sampler=euler", "The key 'sampler' is 'euler'"),
    ],
)
def test_what_is_wrong_is_told_before_weights_load(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, sentence: str
) -> None:
    monkeypatch.setattr(FakeModel, "__init__", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(FlowOPDError) as caught:
        run(protocol, tmp_path / "out", change)
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_scorer_outside_its_range_is_named(protocol: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match="'wrong' gave nan"):
        run(protocol, tmp_path / "out", "scorers=[wrong]")


def test_a_scorer_of_the_wrong_length_is_named() -> None:
    class Short(PickyScorer):
        def score(self, images: Any, records: Any) -> list[Any]:
            return []

    with pytest.raises(FlowOPDError, match=r"'picky' failed .*: it gave 0 results for 1 images"):
        begin_scoring(
            [Short()], np.zeros((1, 4, 4, 3), np.uint8), [PromptRecord("a", "text")], [2], [0]
        ).result()


def test_the_resolved_configuration_reads_back(protocol: Path, tmp_path: Path) -> None:
    from flowopd.config import dump_yaml

    options = {"model": {"family": "fake"}, "out": tmp_path / "out"}
    config = load_config(EvalConfig, protocol, ["seed=9"], options=options)
    other = tmp_path / "elsewhere" / "resolved.yaml"
    other.parent.mkdir()
    other.write_text(dump_yaml(config))
    assert load_config(EvalConfig, other) == config
    assert yaml.safe_load(other.read_text())["seed"] == 9


def test_results_of_something_else_are_refused(protocol: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("[1]")
    with pytest.raises(FlowOPDError, match="is no results file of flowopd"):
        run(protocol, out)


def test_broken_lines_of_scores_are_refused(protocol: Path, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out")
    scores = tmp_path / "out" / "scores" / "base.jsonl"
    scores.write_text("not json\n" + scores.read_text())
    with pytest.raises(FlowOPDError, match="line 1 is not a line of scores"):
        run(protocol, tmp_path / "out")
