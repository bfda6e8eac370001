"""`flowopd world …` as a user calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from flowopd.cli import app
from flowopd.tasks.prompts import read_prompts
from flowopd.world import assets

TINY = ("steps=3", "batch_size=2", "compile=false", "checkpoint_every=2")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["world", *map(str, arguments)])


def test_pretrain_makes_a_base_that_opens(tmp_path: Path) -> None:
    result = call("pretrain", *TINY, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert assets.read_card(tmp_path)["recipe"]["steps"] == 3
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3]
    draw = ("sample", "--model", "world", "--prompt", "a red circle", "--steps", "2")
    drawn = CliRunner().invoke(
        app, [*draw, "--out", str(tmp_path / "out"), f"model.path={tmp_path}"]
    )
    assert drawn.exit_code == 0, drawn.output


def test_pretrain_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    for folder, runs in (("whole", [TINY]), ("twice", [(*TINY[1:], "steps=2"), TINY])):
        for overrides in runs:
            # Of a rate that does not fall, the first run is the beginning of the longer one.
            result = call("pretrain", *overrides, "decay=0", "--out", tmp_path / folder)
            assert result.exit_code == 0, result.output
    weights = [(tmp_path / name / assets.WEIGHTS).read_bytes() for name in ("whole", "twice")]
    assert weights[0] == weights[1]


def test_a_finished_run_is_not_made_again(tmp_path: Path) -> None:
    call("pretrain", *TINY, "--out", tmp_path)
    weights = (tmp_path / assets.WEIGHTS).read_bytes()
    (tmp_path / assets.WEIGHTS).unlink()  # as if killed between the last checkpoint and the base
    result = call("pretrain", *TINY, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / assets.WEIGHTS).read_bytes() == weights


def test_unknown_words_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw = ["sample", "--model", "world", "--prompt", "a circle", "--prompt", "a dog"]
    result = CliRunner().invoke(app, [*draw, "--out", str(out)])
    assert result.exit_code == 2
    assert "does not know dog" in result.output
    assert not out.exists()


def test_dry_run_prints_the_recipe_and_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("pretrain", "seed=3", "--dry-run", "--out", out)
    assert yaml.safe_load(result.stdout)["seed"] == 3
    assert not out.exists()
    (tmp_path / "recipe.yaml").write_text(result.stdout)
    assert call("pretrain", tmp_path / "recipe.yaml", "--dry-run").stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pretrain", "step=3"), "Did you mean 'steps'"),
        (("pretrain", "steps=-1"), "steps"),
        (("pretrain", "steps=many"), "steps"),
        (("pretrain", "seed=-1"), "seed"),
        (("prompts", "text", "--seed", "-1", "--out", "x.jsonl"), "seed"),
        (("prompts", "diversity", "--count", "5000", "--out", "x.jsonl"), "5000 different"),
        (("prompts", "diversity", "--split", "training", "--out", "x.jsonl"), "leave --split out"),
        (("render", "text", "--out", "x.foo"), "end in .png"),
        (("prompts", "poems", "--out", "x.jsonl"), "no task 'poems'"),
        (("prompts", "text", "--split", "test", "--out", "x.jsonl"), "no split 'test'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], sentence: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_the_recipes_prompt_files_are_what_the_command_writes(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[2] / "recipes" / "world" / "prompts"
    for task, count in (("compose", 512), ("text", 512), ("diversity", 64)):
        out = tmp_path / f"{task}.jsonl"
        assert call("prompts", task, "--count", count, "--out", out).exit_code == 0
        assert out.read_text() == (recipes / out.name).read_text()
        assert {record.task for record in read_prompts(out)} == {task}


def test_render_draws_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "sheets" / "truth.png"
    assert call("render", "compose", "--count", 6, "--out", out).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.width > 300
