"""From the file to stages: defaults, tasks, references, order, identities, and every refusal."""

import json
from pathlib import Path

import pytest
import yaml
from studies import EVALS, ORDER, save_adapter

from fakes import FakeModel
from flowopd.config import dump_yaml
from flowopd.errors import FlowOPDError
from flowopd.study.config import load_study
from flowopd.study.plan import Plan, build_plan
from flowopd.study.references import merged
from flowopd.study.run import checked

pytestmark = pytest.mark.usefixtures("fake_plugins")


def plan(file: Path, *overrides: str, run: str = "run") -> Plan:
    return build_plan(load_study(file, overrides), file.parent / run)


def identities(file: Path, *overrides: str) -> dict[str, str]:
    return {name: stage.identity for name, stage in plan(file, *overrides).stages.items()}


def differing(first: dict[str, str], second: dict[str, str]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


class TestReading:
    def test_order_seeds_and_needs(self, study_file: Path) -> None:
        stages = plan(study_file).stages
        assert list(stages) == ORDER + EVALS
        assert stages["merged"].needs == ("t-compose", "t-text")
        assert stages["opd"].needs == ("t-compose", "t-text", "merged")
        assert stages["opd.s3"].needs == stages["opd"].needs
        assert stages["eval.opd.s3"].needs == ("opd.s3",)
        assert stages["eval.base"].needs == ()
        assert [stages[name].config.seed for name in ("opd", "opd.s3")] == [0, 3]

    def test_a_stage_may_stand_before_what_it_needs(self, study_file: Path) -> None:
        data = yaml.safe_load(study_file.read_text())
        data["stages"] = dict(reversed(data["stages"].items()))
        study_file.write_text(yaml.safe_dump(data, sort_keys=False))
        assert list(plan(study_file).stages)[:4] == ["t-compose", "t-text", "merged", "opd"]

    def test_references_become_the_stages_adapters(self, study_file: Path) -> None:
        stages = plan(study_file).stages
        folder = study_file.parent / "run" / "stages"
        opd = stages["opd"].config
        assert opd.start == folder / "merged" / "adapter"
        assert opd.tasks["text"].teacher == folder / "t-text" / "adapter"
        assert opd.algorithm.anchor.adapter == "base"
        assert stages["merged"].config.adapters == {
            folder / "t-compose" / "adapter": 0.5,
            folder / "t-text" / "adapter": 0.5,
        }
        anchored = plan(study_file, "stages.opd.train.algorithm.anchor=t-text").stages["opd"]
        assert anchored.config.algorithm.anchor.adapter == folder / "t-text" / "adapter"
        weighted = "stages.opd.train.algorithm.anchor={adapter: t-text, weight: 0.5}"
        anchor = plan(study_file, weighted).stages["opd"].config.algorithm.anchor
        assert (anchor.adapter, anchor.weight) == (folder / "t-text" / "adapter", 0.5)

    def test_a_reference_to_another_seed(self, study_file: Path) -> None:
        more = "stages.more={train: {tasks: {text: {teacher: opd.s3}}, algorithm: {name: sft}}}"
        data = yaml.safe_load(study_file.read_text())
        data["stages"]["more"] = yaml.safe_load(more.partition("=")[2])
        study_file.write_text(yaml.safe_dump(data, sort_keys=False))
        assert plan(study_file).stages["more"].needs == ("opd.s3",)

    def test_defaults_merge_under_a_stage(self, study_file: Path) -> None:
        overrides = ("train.batch.micro=3", "stages.t-text.train.batch={prompts: 5}")
        stages = plan(study_file, *overrides).stages
        text, compose = stages["t-text"].config, stages["t-compose"].config
        assert (text.batch.prompts, text.batch.images_per_prompt, text.batch.micro) == (5, 2, 3)
        assert (compose.batch.prompts, compose.batch.micro) == (2, 3)
        assert [spec.name for spec in text.scorers] == ["bright"]
        assert stages["opd"].config.algorithm.name == "opd"

    def test_merging_of_settings(self) -> None:
        defaults = {"a": {"b": 1, "c": {"d": 2}}, "e": [1], "f": {"name": "x", "g": 1}}
        own = {"a": {"c": {"d": 3}}, "e": [2], "f": {"name": "y"}, "h": None}
        assert merged(defaults, own) == {
            "a": {"b": 1, "c": {"d": 3}},
            "e": [2],
            "f": {"name": "y"},
            "h": None,
        }
        assert merged({"f": {"name": "x", "g": 1}}, {"f": {"name": "x", "g": 2}})["f"]["g"] == 2
        assert merged({"p": {"q": 1}}, {"p": None}) == {"p": None}
        assert defaults["a"] == {"b": 1, "c": {"d": 2}}

    def test_a_stage_changes_keys_of_a_task(self, study_file: Path) -> None:
        change = (
            "stages.t-text.train.tasks={text: {reward: {bright: 0.5}, share: 2}, compose: null}"
        )
        tasks = plan(study_file, change).stages["t-text"].config.tasks
        assert {name: term.weight for name, term in tasks["text"].reward.items()} == {"bright": 0.5}
        assert tasks["text"].share == 2
        assert tasks["text"].prompts[0].path == study_file.parent / "words.txt"
        assert {name: term.weight for name, term in tasks["compose"].reward.items()} == {
            "bright": 1
        }
        listed = plan(study_file, "stages.t-text.train.tasks=[text, compose]").stages["t-text"]
        assert list(listed.config.tasks) == ["text", "compose"]

    def test_an_override_changes_one_key(self, study_file: Path) -> None:
        stages = plan(study_file, "stages.opd.train.updates=10").stages
        assert (stages["opd"].config.updates, stages["t-text"].config.updates) == (10, 4)

    def test_what_is_written_reads_back_from_elsewhere(
        self, study_file: Path, tmp_path: Path
    ) -> None:
        study = load_study(study_file, ["train.updates=7"])
        copy = tmp_path / "elsewhere" / "study.yaml"
        copy.parent.mkdir()
        copy.write_text(dump_yaml(study.config))
        again = load_study(copy)
        assert again.config == study.config
        run = study_file.parent / "run"
        first, second = build_plan(study, run), build_plan(again, run)
        assert {n: s.identity for n, s in first.stages.items()} == {
            n: s.identity for n, s in second.stages.items()
        }


class TestIdentity:
    def test_it_depends_neither_on_the_place_nor_on_housekeeping(
        self, study_file: Path, tmp_path: Path
    ) -> None:
        here = identities(study_file)
        moved = tmp_path / "moved"
        study_file.parent.rename(moved)
        there = build_plan(load_study(moved / "study.yaml"), tmp_path / "other")
        assert {name: stage.identity for name, stage in there.stages.items()} == here
        kept = identities(
            moved / "study.yaml",
            "train.checkpoint.every=7",
            "train.interference_every=null",
            "train.trackers=[]",
            "train.text_cache=cache",
            "train.probe={every: 2, prompts: [{path: words.txt}], scorers: [bright], sampling: {}}",
            "scorers=[picky, bright]",
            "scorers.1.timeout=3",
            "check_rewards=false",
            "train.rewards.most_missing=0.5",
            "tasks.compose.reward.bright={scale: 1}",
            "report={title: other}",
            "name=other",
        )
        assert kept == here

    @pytest.mark.parametrize(
        ("change", "changed"),
        [
            ("stages.opd.train.updates=5", {"opd", "opd.s3", "eval.opd", "eval.opd.s3"}),
            ("stages.merged.merge.rank=1", {"merged", "opd", "opd.s3", "eval.opd", "eval.opd.s3"}),
            ("stages.t-compose.train.updates=5", set(ORDER + EVALS) - {"t-text", "eval.base"}),
            ("train.batch.images_per_prompt=3", set(ORDER + EVALS) - {"eval.base"}),
            ("train.batch.micro=2", set()),
            ("model.seed=1", set(ORDER + EVALS)),
            ("evaluation.panel=null", set(EVALS)),
            ("scorers=[bright]", set()),
            ("scorers.0.timeout=3", set()),
            (
                "tasks.compose.reward.bright={scale: 2}",
                set(ORDER + EVALS) - {"t-text", "eval.base"},
            ),
        ],
    )
    def test_a_change_reaches_what_stands_on_it_and_nothing_else(
        self, study_file: Path, change: str, changed: set[str]
    ) -> None:
        assert differing(identities(study_file), identities(study_file, change)) == changed

    def test_the_content_of_prompts_counts(self, study_file: Path) -> None:
        before = identities(study_file)
        words = study_file.parent / "words.txt"
        words.write_text(words.read_text() + "more\n")
        assert differing(before, identities(study_file)) == set(ORDER + EVALS) - {"t-compose"}

    def test_the_content_of_an_adapter_counts(self, study_file: Path) -> None:
        save_adapter(study_file.parent / "given", 1)
        start = "stages.t-text.train.start=given"
        before = identities(study_file, start)
        (study_file.parent / "given" / "README").write_text("a note")
        assert identities(study_file, start) == before
        save_adapter(study_file.parent / "given", 2)
        changed = differing(before, identities(study_file, start))
        assert changed == set(ORDER + EVALS) - {"t-compose", "eval.t-compose", "eval.base"}

    def test_the_protocol_counts_by_what_numbers_depend_on(self, study_file: Path) -> None:
        before = identities(study_file)
        protocol = study_file.parent / "protocol.yaml"
        text = protocol.read_text()
        protocol.write_text(text.replace("batch_size: 3", "batch_size: 4"))
        assert identities(study_file) == before
        protocol.write_text(text.replace("seed: 5", "seed: 6"))
        assert differing(before, identities(study_file)) == set(EVALS)


SFT = "algorithm: {name: sft}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("stages.opd.train.start=t-compos", "neither a stage nor the path of an adapter"),
        ("stages.opd.train.start=t-compos", "Did you mean 't-compose'?"),
        ("stages.opd.train.tasks.text.teacher=opd", "cannot be a teacher, or a start, of itself"),
        ("stages.opd.train.tasks.text.teacher=opd.s3", "the stage itself"),
        ("stages.opd.train.algorithm.anchor=opd", "the stage itself"),
        ("stages.opd.train.algorithm.anchor=nothing", "'stages.opd.train.algorithm.anchor'"),
        ("stages.merged.merge.adapters={opd: 1}", "in a circle: merged -> opd -> merged"),
        ("stages.merged.merge.adapters={merged: 1}", "the stage itself"),
        (
            "stages.merged.merge.adapters={x: 1}",
            "'stages.merged.merge.adapters' names 'x', which is neither",
        ),
        ("stages.merged.merge.adapters={t-text: 0.5, t-compose: 0.6}", "sum to 1.1, not to 1"),
        ("stages.merged.merge.methd=svd", "Did you mean 'stages.merged.merge.method'?"),
        ("stages.merged.seeds=[1]", "seeds goes with 'train'"),
        ("stages.merged.train={}", "a stage has either 'train' or 'merge'"),
        ("stages.opd.seeds=[1, 1]", "each may be there once, and 1 is there again"),
        ("stages.opd.seeds=[]", "'stages.opd.seeds' is []"),
        ("stages.opd.train.seed=3", "seeds and train.seed say the same"),
        ("stages.opd.train.model=fake", "The stage 'opd' names a model"),
        ("stages.opd.train.updats=3", "Did you mean 'stages.opd.train.updates'?"),
        ("stages.opd.train.updates=-3", "The key 'stages.opd.train.updates' is -3"),
        ("stages.opd.train.tasks={compos: {}}", "Did you mean 'compose'?"),
        ("stages.opd.train.tasks={compose: {}}", "The task 'compose' has no teacher"),
        ("stages.odp.train.updates=3", "changes the stage 'odp', which"),
        ("stages.odp.train.updates=3", "Did you mean 'opd'?"),
        ("train.tasks={compose: {}}", "shared tasks stand under the study's own key 'tasks'"),
        ("tasks.text.prompts=none.txt", "The stage 't-text' cannot be run: There is no file"),
        ("scorers=[brite]", "There is no scorer 'brite'"),
        ("scorers=[]", "names the metric 'bright', which no scorer gives"),
        ("evaluation.rows=[base, odp]", "The row 'odp' of 'evaluation.rows' is no stage. Did you"),
        ("evaluation.rows=[opd, opd]", "each may be there once, and 'opd' is there again"),
        ("evaluation.average={brigt: 1}", "Did you mean 'bright'?"),
        ("evaluation.average={bright: 0}", "'evaluation.average.bright' is 0"),
        ("evaluation.protocol=none.yaml", "There is no configuration file"),
        ("evaluation.panel.prompts=[]", "'evaluation.panel.prompts' is []"),
        ("report.figures=[{kind: bars, rows: [odp], metrics: [bright]}]", "no row of this study"),
        ("report.figures=[{kind: log, rows: [merged], keys: [loss]}]", "no training stage of"),
        ("name=a/b", "The key 'name' is 'a/b'"),
        ("model.refused=true", "This fake model cannot be opened"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, change: str, sentence: str
) -> None:
    monkeypatch.setattr(FakeModel, "__init__", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(FlowOPDError) as caught:
        checked(load_study(study_file, [change]), study_file.parent / "run")
    assert sentence in str(caught.value)
    assert not (study_file.parent / "run").exists()


@pytest.mark.parametrize("name", ["base", "eval", "a.b", "opd.s3", ""])
def test_names_that_would_be_two_things(study_file: Path, name: str) -> None:
    data = yaml.safe_load(study_file.read_text())
    data["stages"][name] = {"train": {"tasks": {"text": {}}}}
    study_file.write_text(yaml.safe_dump(data))
    with pytest.raises(FlowOPDError, match=r"another name|should match pattern"):
        load_study(study_file)


def test_two_stages_of_one_name(study_file: Path) -> None:
    text = study_file.read_text()
    study_file.write_text(text.replace("  t-text:\n    train", "  t-compose:\n    train", 1))
    with pytest.raises(FlowOPDError, match="'t-compose' is given twice"):
        load_study(study_file)


def test_an_adapter_of_another_base(study_file: Path, tmp_path: Path) -> None:
    given = study_file.parent / "given"
    save_adapter(given, 1)
    notes = json.loads((given / "flowopd.json").read_text())
    (given / "flowopd.json").write_text(json.dumps({**notes, "fingerprint": "f" * 64}))
    for change in ("stages.t-text.train.start=given", "stages.merged.merge.adapters={given: 1}"):
        with pytest.raises(FlowOPDError, match="trained on another base"):
            checked(load_study(study_file, [change]), tmp_path / "run")


def test_a_curve_of_a_probe_needs_no_evaluation_of_it(study_file: Path, tmp_path: Path) -> None:
    probe = "train.probe={every: 2, prompts: [{path: words.txt}], scorers: [bright], sampling: {}}"
    curve = "report.figures=[{kind: curves, rows: [opd], metrics: [level]}]"
    checked(load_study(study_file, [probe, curve]), tmp_path / "run")
