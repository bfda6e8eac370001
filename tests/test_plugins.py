from pathlib import Path

import pytest

from fakes import BrightScorer, FakeConfig, fake_plugins
from flowopd import plugins
from flowopd.config import Config, dump_yaml, load_config
from flowopd.errors import FlowOPDError
from flowopd.models import ModelField, model_keys

__all__ = ["fake_plugins"]


SCORER = """
class Mine:
    name, version, metrics, tasks, grouped = "mine", 1, (), None, False

    def score(self, images, records):
        return []
"""


class Job(Config):
    model: ModelField


@pytest.mark.usefixtures("fake_plugins")
class TestLoading:
    def test_by_name(self) -> None:
        assert plugins.load("models", "fake") is FakeConfig
        assert isinstance(plugins.load_scorer("bright"), BrightScorer)

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(FlowOPDError) as caught:
            plugins.load("scorers", "brigth")
        assert "There is no scorer 'brigth'. Did you mean 'bright'?" in str(caught.value)
        assert "Known scorers: bright, picky, wrong, broken." in str(caught.value)

    def test_a_broken_one_says_what_is_missing(self) -> None:
        with pytest.raises(FlowOPDError, match=r"'broken'.*No module named 'no_such_module_here'"):
            plugins.load_scorer("broken")

    def test_check_lists_all_with_what_is_wrong(self) -> None:
        problems = {(s.group, s.name): s.problem for s in plugins.check()}
        assert problems["models", "fake"] == ""
        assert "no_such_module_here" in problems["commands", "broken"]
        assert len(problems) == 8


class TestScorerFiles:
    def test_a_class_of_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(SCORER)
        assert plugins.load_scorer(f"{file}:Mine").name == "mine"

    @pytest.mark.parametrize("part", ["name", "version", "metrics", "tasks", "grouped", "score"])
    def test_a_class_that_lacks_something(self, tmp_path: Path, part: str) -> None:
        file = tmp_path / "mine.py"
        file.write_text(SCORER + f"del Mine.{part}\n")
        with pytest.raises(FlowOPDError, match=rf"mine\.py:Mine' lacks {part}; every scorer has"):
            plugins.load_scorer(f"{file}:Mine")

    def test_what_an_instance_has_counts(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        own = "def begin(self):\n    self.name = 'own'\nMine.__init__ = begin\n"
        file.write_text(f"{SCORER}del Mine.name\n{own}")
        assert plugins.load_scorer(f"{file}:Mine").name == "own"

    @pytest.mark.parametrize(
        ("content", "name", "sentence"),
        [
            ("x = 1\n", "mine.py:Mine", "defines no 'Mine'"),
            ("x = (\n", "mine.py:Mine", "cannot be imported: SyntaxError"),
            ("import nothing_like_it\n", "mine.py:Mine", "No module named 'nothing_like_it'"),
            ("x = 1\n", "other.py:Mine", "There is no file"),
            ("class Mine:\n  def __init__(self, a): ...\n", "mine.py:Mine", "cannot be started"),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, content: str, name: str, sentence: str) -> None:
        (tmp_path / "mine.py").write_text(content)
        with pytest.raises(FlowOPDError) as caught:
            plugins.load_scorer(str(tmp_path / name))
        assert sentence in str(caught.value)


@pytest.mark.usefixtures("fake_plugins")
class TestModels:
    def test_short_names(self, tmp_path: Path) -> None:
        assert model_keys("fake") == {"family": "fake"}
        assert model_keys("owner/name") == {"family": "sd3", "path": "owner/name"}
        assert model_keys(str(tmp_path)) == {"family": "sd3", "path": str(tmp_path)}
        with pytest.raises(FlowOPDError, match=r"There is no model 'fak'\. Did you mean 'fake'\?"):
            model_keys("fak")

    def test_the_family_has_its_own_keys(self) -> None:
        job = load_config(Job, None, ["model={family: fake, seed: 3}"])
        assert job.model == FakeConfig(seed=3)
        assert dump_yaml(job) == "model:\n  family: fake\n  seed: 3\n  refused: false\n"

    def test_a_text_is_a_short_name(self) -> None:
        assert load_config(Job, None, ["model=fake"]).model == FakeConfig()

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            ("{family: fake, sed: 3}", "Unknown key 'model.sed'. Did you mean 'model.seed'?"),
            ("{family: fake, seed: x}", "The key 'model.seed' is 'x'"),
            ("{family: fak}", "There is no model 'fak'. Did you mean 'fake'?"),
            ("{seed: 3}", "'model.family' is missing"),
            ("{family: sd3}", "'model.path' is missing"),
            ("3", "The key 'model' is 3; it should be keys and values"),
        ],
    )
    def test_wrong_models(self, value: str, sentence: str) -> None:
        with pytest.raises(FlowOPDError) as caught:
            load_config(Job, None, [f"model={value}"])
        assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["sd3", "world"])
def test_the_installed_families_are_found(name: str) -> None:
    if not plugins.found("models"):
        pytest.skip("flowopd is not installed here, so it has no entry points")
    assert plugins.load("models", name).model_fields["family"].default == name
