"""How configurations name scorers: names, settings, overrides, paths, and what tells them apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fakes import FakeConfig
from flowopd import plugins
from flowopd.config import Config, build, dump_yaml, load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import EvalConfig, read_job
from flowopd.rewards.scorer import applies
from flowopd.rewards.settings import ScorerSettings, ScorerSpec, WrittenScorer, by_name
from flowopd.study.identity import Scorers
from flowopd.tasks.prompts import PromptRecord

pytestmark = pytest.mark.usefixtures("fake_plugins")

FILE = """
from typing import Literal
from flowopd.config import FilePath
from flowopd.rewards import MetricInfo, Scores
from flowopd.rewards.scorer import applies
from flowopd.rewards.settings import ModelPlace, ScorerSettings

class Settings(ScorerSettings):
    model: ModelPlace = "org/weights"
    rubric: FilePath | None = None
    floor: float = 0.0

class Judge:
    name, version, tasks, grouped = "judge", 3, None, False
    metrics = (MetricInfo("judged", 0, 1, scale=2.0),)
    Settings = Settings

    def __init__(self, settings):
        self.settings = settings

    def score(self, images, records):
        return [Scores({"judged": self.settings.floor}) for _ in records]
"""


class Job(Config):
    shorthands = {"scorers.*": by_name, "deep.*.scorers.*": by_name}  # noqa: RUF012

    scorers: list[ScorerSpec]
    deep: dict[str, dict[str, Any]] = {}  # noqa: RUF012


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "judge.py").write_text(FILE)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_bytes(b"one")
    (tmp_path / "rubric.txt").write_text("judge it")
    return tmp_path


def job(folder: Path, scorers: Sequence[Any], *overrides: str) -> Job:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"scorers": list(scorers)}))
    return load_config(Job, path, overrides)


def judge(folder: Path, **settings: Any) -> ScorerSpec:
    return job(folder, [{"name": "judge.py:Judge", **settings}]).scorers[0]


class TestForms:
    def test_a_name_and_a_mapping(self, folder: Path) -> None:
        given = ["bright", {"name": "judge.py:Judge", "floor": 0.5, "timeout": 7, "device": "cpu"}]
        plain, judge = job(folder, given).scorers
        assert (plain.name, plain.settings, plain.timeout) == ("bright", {}, 600)
        assert judge.timeout == 7
        made = judge.load()
        assert (made.settings.floor, made.settings.device, made.settings.batch_size) == (
            0.5,
            "cpu",
            16,
        )
        assert made.score(np.zeros((1, 2, 2, 3), np.uint8), [None])[0].values == {"judged": 0.5}

    def test_a_scorer_without_settings_is_made_without(self) -> None:
        assert plugins.load_scorer("bright").name == "bright"
        assert plugins.load_scorer({"name": "bright"}).name == "bright"

    def test_they_are_written_as_they_were(self, folder: Path) -> None:
        given = ["bright", {"name": "judge.py:Judge", "floor": 0.5}]
        found = job(folder, given)
        text = yaml.safe_load(dump_yaml(found))["scorers"]
        assert text == ["bright", {"name": f"{folder}/judge.py:Judge", "floor": 0.5}]

    def test_and_read_back_from_elsewhere(self, folder: Path) -> None:
        found = job(folder, [{"name": "judge.py:Judge", "model": "weights"}])
        other = folder / "elsewhere" / "job.yaml"
        other.parent.mkdir()
        other.write_text(dump_yaml(found))
        assert load_config(Job, other) == found

    def test_a_configuration_that_only_hands_them_on_keeps_them_as_written(self) -> None:
        class Hands(Config):
            scorers: list[WrittenScorer]

        given = ["bright", {"name": "bright"}, {"name": "judge.py:Judge", "model": "weights"}]
        found = build(Hands, {"scorers": given}, context={"folder": Path("/somewhere")})
        assert found.scorers == ["bright", "bright", given[2]]


class TestOverrides:
    def test_single_keys_of_a_scorer(self, folder: Path) -> None:
        found = job(
            folder,
            ["judge.py:Judge", "bright"],
            "scorers.0.device=cuda:1",
            "scorers.0.floor=0.25",
            "scorers.1.timeout=3",
        )
        assert found.scorers[0].settings == {"device": "cuda:1", "floor": 0.25}
        assert found.scorers[1].timeout == 3

    def test_in_lists_that_stand_deeper(self, folder: Path) -> None:
        (folder / "job.yaml").write_text("scorers: []\ndeep: {a: {scorers: [x]}, b: {other: 1}}\n")
        found = load_config(Job, folder / "job.yaml", ["deep.a.scorers.0.device=cpu"])
        assert found.deep["a"]["scorers"] == [{"name": "x", "device": "cpu"}]


class TestPaths:
    def test_are_relative_to_the_configuration(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir("/")
        made = judge(folder, model="weights", rubric="rubric.txt").load()
        assert made.settings.model == str(folder / "weights")
        assert made.settings.rubric == folder / "rubric.txt"

    def test_or_else_to_the_working_folder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        (folder / "configs").mkdir()
        path = folder / "configs" / "job.yaml"
        path.write_text("scorers: [{name: 'judge.py:Judge', model: weights}]\n")
        made = load_config(Job, path).scorers[0].load()
        assert made.settings.model == str(folder / "weights")

    def test_what_is_no_folder_may_be_on_the_hub(self, folder: Path) -> None:
        assert judge(folder, model="org/other@v2").load().settings.model == "org/other@v2"

    def test_and_nothing_else(self, folder: Path) -> None:
        with pytest.raises(FlowOPDError, match=r"model' is 'wieghts'; there is no .*wieghts, and"):
            judge(folder, model="wieghts")


class TestIdentity:
    def test_settings_that_change_no_number_do_not_count(self, folder: Path) -> None:
        same = [judge(folder, device="cuda:1", batch_size=2, timeout=9), judge(folder, floor=0.0)]
        assert [spec.identity() for spec in same] == [{}, {}]
        assert judge(folder, floor=0.5).identity() == {"floor": 0.5}
        assert judge(folder, model="org/other").identity() == {"model": "org/other"}

    def test_files_and_folders_count_by_what_is_in_them(self, folder: Path) -> None:
        first = judge(folder, model="weights", rubric="rubric.txt").identity()
        assert str(folder) not in str(first)
        moved = folder / "moved"
        (folder / "weights").rename(moved)
        assert judge(folder, model="moved", rubric="rubric.txt").identity() == first
        (moved / "a.bin").write_bytes(b"three")
        assert judge(folder, model="moved").identity()["model"] != first["model"]
        (folder / "rubric.txt").write_text("judge it well")
        again = judge(folder, model="moved", rubric="rubric.txt").identity()
        assert again["rubric"] != first["rubric"]

    def test_of_a_stage(self, folder: Path) -> None:
        scorers = Scorers()
        assert scorers.identity(ScorerSpec(name="bright")) == {"name": "bright", "version": 1}
        found = scorers.identity(judge(folder, floor=0.5))
        assert found == {
            "name": "Judge",
            "file": folder / "judge.py",
            "settings": {"floor": 0.5},
        }

    def test_of_a_protocol(self, folder: Path, protocol: Path) -> None:
        def hash_of(*scorers: Any) -> str:
            options = {"model": FakeConfig(), "out": folder / "out", "scorers": list(scorers)}
            return read_job(load_config(EvalConfig, protocol, options=options)).hash

        name = f"{folder}/judge.py:Judge"
        plain = hash_of("bright", "picky")
        assert plain == hash_of({"name": "bright", "timeout": 3}, "picky")
        own = hash_of("bright", name)
        assert own != plain
        assert own == hash_of("bright", {"name": name, "device": "cuda:3"})
        assert own != hash_of("bright", {"name": name, "floor": 0.5})


class TestTasks:
    def test_narrow_what_is_read(self, folder: Path) -> None:
        (spec,) = job(folder, [{"name": "judge.py:Judge", "tasks": ["b", "a"]}]).scorers
        scorer = spec.load()
        assert scorer.tasks == {"a", "b"}
        read = [applies(scorer, PromptRecord("x", task)) for task in ("a", "b", "c")]
        assert read == [True, True, False]
        assert spec.load().tasks == {"a", "b"}
        assert judge(folder).load().tasks is None

    def test_change_what_is_given(self, folder: Path) -> None:
        assert judge(folder, tasks=["b", "a"]).identity() == {"tasks": ["a", "b"]}
        given = {"name": "judge.py:Judge", "tasks": ["a"], "floor": 0.5}
        (spec,) = job(folder, [given]).scorers
        assert spec.model_dump() == given | {"name": f"{folder}/judge.py:Judge"}

    def test_that_it_cannot_read(self, folder: Path) -> None:
        narrow = FILE.replace(
            'tasks, grouped = "judge", 3, None', "tasks, grouped = \"judge\", 3, {'a'}"
        )
        (folder / "judge.py").write_text(narrow)
        assert judge(folder, tasks=["a"]).load().tasks == {"a"}
        with pytest.raises(FlowOPDError, match="the task 'b', and reads only prompts of 'a'"):
            judge(folder, tasks=["a", "b"]).load()

    def test_that_cannot_be_set(self, folder: Path) -> None:
        fixed = FILE.replace("version, tasks, grouped", "version, grouped").replace(
            "3, None, False", "3, False"
        )
        (folder / "judge.py").write_text(f"{fixed}\n    tasks = property(lambda self: None)\n")
        with pytest.raises(FlowOPDError, match="does not let its tasks be narrowed"):
            judge(folder, tasks=["a"]).load()

    def test_none_at_all(self, folder: Path) -> None:
        with pytest.raises(FlowOPDError, match=r"scorers\.0\.tasks' is \[\]"):
            job(folder, [{"name": "judge.py:Judge", "tasks": []}])


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"device": "cpu"}, "without a 'name'; write a name, or {name: NAME, device: cuda:1}"),
            (
                {"name": "bright", "device": "cpu"},
                "'bright' has no settings, and is given 'device'",
            ),
            ({"name": "judge.py:Judge", "flor": 1}, "Did you mean 'judge.py:Judge.floor'?"),
            (
                {"name": "judge.py:Judge", "floor": "x"},
                "floor' is 'x'; it should be a valid number",
            ),
            ({"name": "judge.py:Judge", "batch_size": 0}, "batch_size' is 0"),
            ({"name": "judge.py:Judge", "timeout": 0}, "The key 'scorers.0.timeout' is 0"),
            ({"name": "judge.py:Judge", 3: 1}, "has the key 3"),
            (7, "The key 'scorers.0' is 7; it should be keys and values"),
        ],
    )
    def test_wrong_entries(self, folder: Path, given: Any, sentence: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            job(folder, [given])
        assert sentence in str(caught.value).replace(f"{folder}/", "")

    def test_a_name_where_a_list_should_be(self, folder: Path) -> None:
        (folder / "job.yaml").write_text("scorers: bright\n")
        with pytest.raises(FlowOPDError, match="'scorers' is 'bright'; it should be a valid list"):
            load_config(Job, folder / "job.yaml")

    def test_one_that_cannot_be_imported_is_refused_when_it_is_loaded(self, folder: Path) -> None:
        (spec,) = job(folder, [{"name": "missing", "device": "cpu"}]).scorers
        with pytest.raises(FlowOPDError, match="There is no scorer 'missing'"):
            spec.load()
        (broken,) = job(folder, ["broken"]).scorers
        with pytest.raises(FlowOPDError, match="cannot be imported"):
            broken.load()

    def test_settings_without_an_extra_key_stay_what_they_are(self) -> None:
        assert ScorerSettings().identity() == {}
