"""The configuration of a run: short forms, and what is refused key by key."""

from pathlib import Path
from typing import Any

import pytest

from flowopd.algorithms.settings import GRPOConfig, NFTConfig, OPDConfig, SFTConfig
from flowopd.config import build, dump_yaml, load_config
from flowopd.errors import FlowOPDError
from flowopd.training.config import HOUSEKEEPING, TrainConfig

pytestmark = pytest.mark.usefixtures("fake_plugins")

DATA: dict[str, Any] = {
    "model": "fake",
    "tasks": {
        "compose": {"prompts": "compose.jsonl", "teacher": "my/teachers/compose"},
        "text": {"prompts": "text.jsonl", "teacher": "teachers/text"},
    },
    "algorithm": {"name": "opd"},
    "batch": {"prompts": 4},
    "updates": 10,
}


def config(folder: str | None = None, **changes: Any) -> TrainConfig:
    context = None if folder is None else {"folder": folder}
    return build(TrainConfig, DATA | changes, context=context)


class TestShortForms:
    def test_prompts_may_be_a_path_or_a_list_of_them(self) -> None:
        def paths(prompts: Any) -> list[str]:
            task = config(tasks={"a": {"prompts": prompts, "teacher": "t"}}).tasks["a"]
            return [str(entry.path) for entry in task.prompts]

        assert paths("a.txt") == ["a.txt"]
        assert paths(["a.txt", {"path": "b.txt", "limit": 3}]) == ["a.txt", "b.txt"]
        assert paths({"path": "b.txt"}) == ["b.txt"]

    def test_a_reward_may_be_numbers(self) -> None:
        task = {"prompts": "a.txt", "teacher": "t", "reward": {"x": 2, "y": {"scale": 5}}}
        reward = config(tasks={"a": task}).tasks["a"].reward
        assert (reward["x"].weight, reward["x"].scale) == (2, None)
        assert (reward["y"].weight, reward["y"].scale) == (1, 5)

    @pytest.mark.parametrize("text", ["1e-1", "0.1", " 1E-1 "])
    def test_a_text_that_is_a_number_is_one(self, text: str) -> None:
        """YAML 1.1 reads 1e-1 as a text."""
        task = {"prompts": "a.txt", "teacher": "t", "reward": {"x": text}}
        assert config(tasks={"a": task}).tasks["a"].reward["x"].weight == 0.1

    @pytest.mark.parametrize("text", ["much", "nan", "1e999", ""])
    def test_a_text_that_is_none_is_refused(self, text: str) -> None:
        task = {"prompts": "a.txt", "teacher": "t", "reward": {"x": text}}
        with pytest.raises(FlowOPDError, match=r"reward\.x"):
            config(tasks={"a": task})

    def test_paths_are_relative_to_the_file(self) -> None:
        found = config("/recipes", start="merged", algorithm={"name": "opd", "anchor": "quality"})
        task = found.tasks["compose"]
        assert task.prompts[0].path == Path("/recipes/compose.jsonl")
        assert task.teacher == Path("/recipes/my/teachers/compose")
        assert found.start == Path("/recipes/merged")
        assert isinstance(found.algorithm, OPDConfig)
        assert found.algorithm.anchor is not None
        assert found.algorithm.anchor.adapter == Path("/recipes/quality")

    @pytest.mark.parametrize(
        ("name", "cls"),
        [("grpo", GRPOConfig), ("sft", SFTConfig), ("opd", OPDConfig), ("nft", NFTConfig)],
    )
    def test_the_algorithm_is_known_by_its_name(self, name: str, cls: type) -> None:
        teacher = {"teacher": "t"} if name in ("sft", "opd") else {"reward": {"level": 1}}
        found = config(
            tasks={"a": {"prompts": "p.txt", **teacher}},
            algorithm={"name": name},
            batch={"prompts": 2, "images_per_prompt": 2},
            rollout={"guidance": 1.0},
        )
        assert type(found.algorithm) is cls

    def test_what_is_written_down_is_read_back(self, tmp_path: Path) -> None:
        """Defaults that are written out are not taken for keys that somebody gave."""
        first = config(
            start="merged",
            algorithm={"name": "opd", "anchor": "base", "steps": {"choose": "beta", "count": 2}},
            ema={"every": 4},
            optimizer={"betas": [0.8, 0.95]},
        )
        file = tmp_path / "run.yaml"
        file.write_text(dump_yaml(first))
        again = load_config(TrainConfig, file)
        assert again.model_dump(exclude={"tasks", "start"}) == first.model_dump(
            exclude={"tasks", "start"}
        )

    def test_housekeeping_names_keys_that_there_are(self) -> None:
        assert set(HOUSEKEEPING) <= set(TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"algorithm": "opd"}, "The key 'algorithm' is 'opd'; it should be keys and values, with"),
        ({"algorithm": {}}, "'algorithm.name' is None; it is one of grpo, sft, opd, nft"),
        ({"algorithm": {"name": "ppo"}}, "'algorithm.name' is 'ppo'; it is one of grpo, sft"),
        ({"algorithm": {"name": ["opd"]}}, "'algorithm.name' is ['opd']; it is one of"),
        (
            {"algorithm": {"name": "opd", "wieghting": "kl"}},
            "Unknown key 'algorithm.wieghting'. Did you mean 'algorithm.weighting'?",
        ),
        (
            {"algorithm": {"name": "opd", "steps": {"chose": "all"}}},
            "Unknown key 'algorithm.steps.chose'. Did you mean 'algorithm.steps.choose'?",
        ),
        ({"algorithm": {"name": "sft", "kl": 1}}, "Unknown key 'algorithm.kl'"),
        ({"lr": 1e-3}, "Unknown key 'lr'"),
        ({"batch": {"prompts": 4, "size": 3}}, "Unknown key 'batch.size'"),
        ({"rollout": {"stps": 3}}, "Unknown key 'rollout.stps'. Did you mean 'rollout.steps'?"),
        (
            {"tasks": {"a": {"prompts": "p", "teachers": "t"}}},
            "Unknown key 'tasks.a.teachers'. Did you mean",
        ),
        ({"tasks": {}}, "'tasks' is {}"),
        ({"tasks": {"a": {"prompts": [], "teacher": "t"}}}, "'tasks.a.prompts' is []"),
        ({"tasks": {"a|b": {"prompts": "p", "teacher": "t"}}}, "'a|b'; String should match"),
        ({"tasks": {"a/b": {"prompts": "p", "teacher": "t"}}}, "'a/b'; String should match"),
        (
            {"tasks": {"a": {"prompts": "p", "teacher": "t", "share": 0}}},
            "'tasks.a.share' is 0; it should be greater than 0",
        ),
        (
            {"tasks": {"a": {"prompts": "p", "teacher": "t", "reward": {"m": True}}}},
            "'tasks.a.reward.m.weight' is True; it should be a number",
        ),
        ({"batch": {}}, "'batch.prompts' is missing"),
        ({"batch": {"prompts": 4, "micro": 0}}, "'batch.micro' is 0"),
        ({"rollout": {"steps": 1}}, "'rollout.steps' is 1"),
        ({"rollout": {"sampler": "ddim"}}, "'rollout.sampler' is 'ddim'"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "'optimizer.betas.1' is 1.0; it should be less"),
        ({"optimizer": {"lr": 0}}, "'optimizer.lr' is 0"),
        ({"optimizer": {"decay": "linear"}}, "'optimizer.decay' is 'linear'"),
        ({"ema": {"decay": 1.0}}, "'ema.decay' is 1.0"),
        ({"checkpoint": {"keep": 0}}, "'checkpoint.keep' is 0"),
        ({"updates": 0}, "'updates' is 0"),
        ({"seed": -1}, "'seed' is -1"),
        ({"model": "fak"}, "There is no model 'fak'. Did you mean 'fake'?"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError) as caught:
        config(**changes)
    assert sentence in str(caught.value)


def test_two_routes_for_one_task_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tasks:\n  text: {prompts: a, teacher: b}\n  text: {prompts: a, teacher: c}\n")
    with pytest.raises(FlowOPDError, match=r"The key 'text' is given twice \(line 3\)"):
        load_config(TrainConfig, file)
