"""SD3.5's recipes: the numbers that the paper gives, every check, and runs in miniature."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from sd35m import RECIPES, TEACHERS, copy_recipes, publish_teachers, shrink, write_prompts
from typer.testing import CliRunner

from flowopd.cli import app
from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import EvalConfig
from flowopd.evaluation.run import check_protocol
from flowopd.policy.adapter_files import read_adapter
from flowopd.study.config import load_study
from flowopd.study.plan import Plan, build_plan
from flowopd.study.run import checked, run_study
from flowopd.tasks.prompts import read_prompts
from flowopd.training.config import TrainConfig
from flowopd.training.eligible import eligible_steps
from hub_cache import COMMIT, HubCache, hub
from judges import judges, no_judges

__all__ = ["hub", "judges", "no_judges"]

STUDIES = [
    "flow_opd",
    "flow_opd_24gb",
    "flow_opd_80gb",
    "table2",
    "table2_published",
]
FLOW_OPD = [name for name in STUDIES if name.startswith("flow_opd")]


@pytest.fixture
def recipes(hub: HubCache, tmp_path: Path) -> Path:
    """A copy of the recipes beside tiny prompts, with the published teachers on the hub."""
    folder = copy_recipes(tmp_path / "recipes")
    write_prompts(folder)
    publish_teachers(hub, tmp_path / "published")
    return folder


@pytest.fixture
def tiny(recipes: Path, tiny_pipeline: Path) -> list[str]:
    """Overrides that put the tiny pipeline in place of SD3.5-Medium."""
    return [f"model.path={tiny_pipeline}", "model.device=cpu", "model.dtype=fp32"]


def plan(recipes: Path, name: str, tiny: list[str], *overrides: str) -> Plan:
    study = load_study(recipes / f"{name}.yaml", [*tiny, *overrides])
    return build_plan(study, recipes / "runs" / name)


def trainings(recipes: Path, name: str, tiny: list[str]) -> dict[str, TrainConfig]:
    """The training stages of a recipe with all defaults filled in."""
    stages = plan(recipes, name, tiny).stages.values()
    return {stage.name: stage.config for stage in stages if stage.kind == "train"}


def log_of(run: Path, stage: str) -> list[dict[str, Any]]:
    lines = (run / "stages" / stage / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- what they say -----------------------------------------------------------------------------


def test_these_are_all_recipes() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted([*STUDIES, "eval"])


@pytest.mark.parametrize("name", [*STUDIES, "eval"])
def test_the_model_is_the_papers(name: str) -> None:
    data = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert (
        data["model"].items()
        >= {
            "family": "sd3",
            "path": "stabilityai/stable-diffusion-3.5-medium",
            "dtype": "bf16",
            "t5_length": 128,
        }.items()
    )
    assert data["model"].get("gradient_checkpointing", False) is (name == "flow_opd_24gb")


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", STUDIES)
def test_what_the_paper_says_of_every_training(recipes: Path, tiny: list[str], name: str) -> None:
    for stage, config in trainings(recipes, name, tiny).items():
        rollout, optimizer = config.rollout, config.optimizer
        assert (rollout.height, rollout.width) == (512, 512)
        assert rollout.guidance == 4.5
        if stage != "sft":
            assert (rollout.steps, rollout.sampler, rollout.noise_level) == (10, "flow_sde", 0.7)
        assert config.model.t5_length == 128
        if config.start is None:
            assert (config.student.rank, config.student.alpha) == (32, 64)
        assert config.student.targets is None
        assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
        assert (optimizer.weight_decay, optimizer.clip_norm) == (1e-4, 1)
        assert config.ema is not None
        assert (config.ema.decay, config.ema.every) == (0.9, 8)
        small = name in ("flow_opd_24gb", "flow_opd_80gb")
        teacher = stage.startswith("teacher")
        assert optimizer.lr == (3e-4 if small or teacher else 1e-4)
        group = 1 if small or stage == "sft" else 24
        assert config.batch.images_per_prompt == group


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", STUDIES)
def test_what_the_paper_says_of_distillation(recipes: Path, tiny: list[str], name: str) -> None:
    stages = {k: v for k, v in trainings(recipes, name, tiny).items() if k.startswith("opd")}
    assert "opd-merge" in stages
    for stage, config in stages.items():
        algorithm = config.algorithm
        assert algorithm.name == "opd"
        assert (algorithm.loss, algorithm.weighting) == ("pathwise", "kl")
        assert algorithm.fused
        assert eligible_steps(config) == list(range(9))
        assert {task: one.share for task, one in config.tasks.items()} == {"geneval": 3, "ocr": 1}
        assert all(config.teacher_guidance(task) == 4.5 for task in config.tasks)
        assert config.scorers == [] or name == "table2"
        if stage == "opd-merge-no-mar":
            assert algorithm.anchor is None
        else:
            assert algorithm.anchor is not None
            assert algorithm.anchor.weight == 0.02


@pytest.mark.usefixtures("judges")
def test_what_the_paper_says_of_grpo(recipes: Path, tiny: list[str]) -> None:
    stages = trainings(recipes, "table2", tiny)
    for stage in ("teacher-geneval", "teacher-ocr", "teacher-pickscore", "teacher-deqa"):
        config = stages[stage]
        algorithm = config.algorithm
        assert algorithm.name == "grpo"
        assert (algorithm.clip, algorithm.advantage_clip, algorithm.spread) == (1e-4, 5, "global")
        assert algorithm.kl == (0.01 if stage == "teacher-pickscore" else 0.04)
        assert (config.batch.prompts, config.batch.images_per_prompt) == (24, 24)
        assert eligible_steps(config) == list(range(8))  # the noise of the ninth would be judged
    deqa = stages["teacher-deqa"].tasks["all"]
    assert {metric: term.weight for metric, term in deqa.reward.items()} == {
        "deqa": 0.4,
        "pickscore": 0.6,
    }
    assert len(deqa.prompts) == 3
    for stage in ("grpo-mix", "sft+grpo-mix", "merge+grpo-mix"):
        config = stages[stage]
        assert [task.share for task in config.tasks.values()] == [3, 1, 1]
        assert config.batch.mixing == "alternating"
        for task in config.tasks.values():
            weights = {metric: term.weight for metric, term in task.reward.items()}
            assert weights.pop("deqa") == 0.2
            assert list(weights.values()) == [0.8]
            assert {m: t.scale for m, t in task.reward.items()}["deqa"] == 5
    assert stages["grpo-mix"].start is None


@pytest.mark.usefixtures("judges")
def test_what_stands_on_what(recipes: Path, tiny: list[str]) -> None:
    stages = plan(recipes, "table2", tiny).stages
    assert set(stages["merged"].needs) == {"teacher-geneval", "teacher-ocr", "teacher-pickscore"}
    assert set(stages["sft"].needs) == {"teacher-geneval", "teacher-ocr"}
    assert stages["sft+grpo-mix"].needs == ("sft",)
    assert stages["merge+grpo-mix"].needs == ("merged",)
    taught = {"teacher-geneval", "teacher-ocr"}
    assert set(stages["opd-merge"].needs) == {"merged", "teacher-deqa", *taught}
    assert set(stages["opd-sft"].needs) == {"sft", "teacher-deqa", *taught}
    assert set(stages["opd-merge-no-mar"].needs) == {"merged", *taught}
    study = load_study(recipes / "table2.yaml").config
    assert study.evaluation is not None
    assert set(study.evaluation.rows) == {"base", *study.stages}
    assert study.evaluation.average == {"geneval": 1, "ocr": 1, "deqa": 5, "pickscore": 26}


@pytest.mark.parametrize("name", [*FLOW_OPD, "table2_published"])
def test_the_published_teachers_are_named(recipes: Path, tiny: list[str], name: str) -> None:
    stages = plan(recipes, name, tiny).stages
    merged = stages["merged"].config
    assert [str(path) for path in merged.adapters] == list(TEACHERS.values())
    assert math.fsum(merged.adapters.values()) == pytest.approx(1, abs=1e-9)
    assert (merged.method, merged.rank) == ("svd", 32)
    opd = stages["opd-merge"].config
    assert {task: str(one.teacher) for task, one in opd.tasks.items()} == {
        "geneval": TEACHERS["geneval"],
        "ocr": TEACHERS["ocr"],
    }
    assert str(opd.algorithm.anchor.adapter) == TEACHERS["pickscore"]


@pytest.mark.usefixtures("judges")
def test_the_same_stage_is_the_same_in_every_recipe(recipes: Path, tiny: list[str]) -> None:
    """Nothing is shared between files; so that they stay alike, they are compared."""

    def settings(config: TrainConfig, *, roles: bool) -> dict[str, Any]:
        data = config.model_dump(mode="json")
        del data["start"]
        if not roles:
            del data["scorers"]
            for task in data["tasks"].values():
                del task["teacher"]
            if data["algorithm"].get("anchor"):
                del data["algorithm"]["anchor"]["adapter"]
        return data

    large = trainings(recipes, "flow_opd", tiny)["opd-merge"]
    published = trainings(recipes, "table2_published", tiny)
    own = trainings(recipes, "table2", tiny)
    assert settings(large, roles=True) == settings(published["opd-merge"], roles=True)
    for stage, config in published.items():
        assert settings(own[stage], roles=False) == settings(config, roles=False), stage


def test_the_protocol_is_the_papers() -> None:
    data = yaml.safe_load((RECIPES / "eval.yaml").read_text())
    assert (data["steps"], data["guidance"], data["sampler"]) == (40, 4.5, "ode")
    assert (data["height"], data["width"]) == (512, 512)
    assert data["scorers"] == [
        "geneval",
        "ocr",
        {"name": "pickscore", "tasks": ["pickscore"]},
        {"name": "deqa", "tasks": ["drawbench"]},
    ]


# --- what is checked ---------------------------------------------------------------------------


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", STUDIES)
def test_every_recipe_passes_every_check(recipes: Path, tiny: list[str], name: str) -> None:
    shrink(recipes)
    study = load_study(recipes / f"{name}.yaml", tiny)
    _, _, todo = checked(study, recipes / "runs" / name)
    rows = 0 if study.config.evaluation is None else len(study.config.evaluation.rows)
    assert len(todo) == len(study.config.stages) + rows


@pytest.mark.usefixtures("judges")
def test_the_protocol_passes_every_check(recipes: Path, tiny: list[str]) -> None:
    shrink(recipes)
    config = load_config(EvalConfig, recipes / "eval.yaml", tiny, options={"out": "out"})
    assert len(check_protocol(config).records) == 16


@pytest.mark.usefixtures("no_judges")
def test_a_recipe_that_needs_a_scorer_says_so(recipes: Path, tiny: list[str]) -> None:
    with pytest.raises(FlowOPDError, match=r"There is no scorer 'geneval'\..* Known scorers: "):
        plan(recipes, "table2", tiny)
    with pytest.raises(FlowOPDError, match=r"There is no scorer 'geneval'\..* Known scorers: "):
        check_protocol(load_config(EvalConfig, recipes / "eval.yaml", tiny, options={"out": "out"}))


@pytest.mark.usefixtures("no_judges")
@pytest.mark.parametrize("name", [*FLOW_OPD, "table2_published"])
def test_a_recipe_with_published_teachers_needs_no_scorer(
    recipes: Path, tiny: list[str], name: str
) -> None:
    shrink(recipes)
    checked(load_study(recipes / f"{name}.yaml", tiny), recipes / "runs")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", FLOW_OPD)
def test_a_recipe_without_what_is_fetched_says_what(
    tmp_path: Path, tiny_pipeline: Path, name: str
) -> None:
    folder = copy_recipes(tmp_path / "recipes")
    call = ["run", str(folder / f"{name}.yaml"), f"model.path={tiny_pipeline}", "--dry-run"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 2
    assert f"{TEACHERS['geneval']} is no folder here" in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_a_recipe_without_prompts_says_which(
    hub: HubCache, tmp_path: Path, tiny_pipeline: Path
) -> None:
    folder = copy_recipes(tmp_path / "recipes")
    publish_teachers(hub, tmp_path / "published")
    with pytest.raises(
        FlowOPDError, match=r"'opd-merge' cannot be run: There is no file .*prompts/geneval\.jsonl"
    ):
        plan(folder, "flow_opd", [f"model.path={tiny_pipeline}", "model.device=cpu"])


def test_the_sets_load_as_they_are_published(recipes: Path) -> None:
    geneval = read_prompts(recipes / "prompts" / "geneval.jsonl", "geneval")
    assert {record.task for record in geneval} == {"geneval"}
    assert [record.tag for record in geneval[:2]] == ["counting", "colors"]
    assert geneval[0].meta == {"include": [{"class": "clock", "count": 3}], "exclude": []}
    ocr = read_prompts(recipes / "prompts" / "ocr.txt", "ocr")
    assert ocr[0].prompt == 'a sign that says "hello"'


# --- runs in miniature -------------------------------------------------------------------------


def small(stage: str, **changes: Any) -> list[str]:
    keys = {
        "updates": 2,
        "batch.prompts": 4,
        "batch.images_per_prompt": 2,
        "batch.micro": 4,
        "rollout.steps": 4,
        "rollout.sde_window": "[0,3]",
        "ema.every": 1,
        "checkpoint.every": 1,
    } | changes
    return [f"stages.{stage}.train.{key}={value}" for key, value in keys.items()]


@pytest.mark.usefixtures("no_judges")
def test_flow_opd_runs_from_end_to_end(
    recipes: Path, tiny: list[str], tmp_path: Path, tiny_pipeline: Path
) -> None:
    shrink(recipes)
    study = load_study(recipes / "flow_opd.yaml", [*tiny, *small("opd-merge")])
    run = run_study(study, tmp_path / "run").folder
    merged = read_adapter(run / "stages" / "merged" / "adapter")
    student = read_adapter(run / "stages" / "opd-merge" / "adapter")
    assert student.config.rank == merged.config.rank == 32
    assert any(not torch.equal(student.tensors[key], merged.tensors[key]) for key in merged.tensors)
    lines = log_of(run, "opd-merge")
    assert [line["update"] for line in lines] == [1, 2]
    assert lines[-1]["images"] == 16
    for key in ("task/geneval/divergence", "task/ocr/divergence", "anchor/divergence"):
        assert all(line[key] > 0 for line in lines)
    assert {one["hub"]: one["commit"] for one in student.notes["hub"].values()} == dict.fromkeys(
        TEACHERS.values(), COMMIT
    )
    assert student.notes["guidance"] == 4.5
    assert student.notes["t5_length"] == 128
    StableDiffusion3Pipeline.from_pretrained(tiny_pipeline).load_lora_weights(student.folder)


@pytest.mark.usefixtures("no_judges")
@pytest.mark.parametrize("name", ["flow_opd_24gb", "flow_opd_80gb"])
def test_the_smaller_ones_run(recipes: Path, tiny: list[str], tmp_path: Path, name: str) -> None:
    shrink(recipes)
    changes = small(
        "opd-merge",
        **{
            "algorithm.steps.count": 2,
            "optimizer.warmup": 1,
            "text_cache": tmp_path / "embeddings",
            "batch.images_per_prompt": 1,
        },
    )
    run = run_study(load_study(recipes / f"{name}.yaml", [*tiny, *changes]), tmp_path / "run")
    assert len(log_of(run.folder, "opd-merge")) == 2
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 9  # 8 prompts and none


@pytest.mark.usefixtures("judges")
def test_a_row_of_the_table_runs_alone(recipes: Path, tiny: list[str], tmp_path: Path) -> None:
    """Teachers by GRPO, SFT on their pictures, OPD from there with the anchor."""
    shrink(recipes)
    stages = ["teacher-geneval", "teacher-ocr", "teacher-deqa", "opd-sft"]
    changes = [text for stage in stages for text in small(stage, updates=1)]
    changes += [text for text in small("sft", updates=1) if "sde_window" not in text]
    changes += ["stages.sft.train.algorithm.images_per_task=4"]
    changes += [f"stages.{stage}.train.probe=null" for stage in stages[:3]]
    changes += ["model.t5_length=16"]
    study = load_study(recipes / "table2.yaml", [*tiny, *changes])
    run = run_study(study, tmp_path / "run", only=["opd-sft"]).folder
    done = {path.parent.name for path in (run / "stages").glob("*/done.json")}
    assert done == {*stages, "sft"}
    assert log_of(run, "teacher-deqa")[0]["task/all/reward"] > 0
    assert log_of(run, "opd-sft")[0]["anchor/divergence"] >= 0
