"""Adapters on the hub wherever a study, a command or a protocol can name one."""

import json
from pathlib import Path
from typing import Any

import pytest
from studies import kinds, save_adapter, write_study
from typer.testing import CliRunner

from flowopd.cli import app
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import EvalConfig
from flowopd.study.config import load_study
from flowopd.study.identity import Contents
from flowopd.study.kinds import KINDS
from flowopd.study.plan import Plan, build_plan
from flowopd.study.run import run_study
from flowopd.training.config import TrainConfig
from hub_cache import COMMIT, HubCache, hub
from tiny_sd3 import tiny_transformer

__all__ = ["hub"]

pytestmark = pytest.mark.usefixtures("fake_plugins")

COMPOSE, TEXT, QUALITY = "lab/fake-compose", "lab/fake-text@v1", "lab/fake-quality"


@pytest.fixture
def published(hub: HubCache, tmp_path: Path) -> Path:
    """Three adapters of the fake model on the hub; the folder of the same ones here."""
    for seed, (name, revision) in enumerate(
        (("lab/fake-compose", "main"), ("lab/fake-text", "v1"), ("lab/fake-quality", "main"))
    ):
        folder = tmp_path / "local" / name
        save_adapter(folder, seed)
        hub.put(name, folder, revision=revision)
    return tmp_path / "local"


def stages(compose: str = COMPOSE, text: str = TEXT, quality: str = QUALITY) -> dict[str, Any]:
    """A merge and a student that need nothing but adapters on the hub."""
    return {
        "merged": {"merge": {"adapters": {compose: 0.5, text: 0.5}, "method": "svd", "rank": 2}},
        "opd": {
            "train": {
                "start": compose,
                "tasks": {"compose": {"teacher": compose}, "text": {"teacher": text}},
                "algorithm": {"name": "opd", "anchor": quality},
            }
        },
    }


def plan(file: Path) -> Plan:
    return build_plan(load_study(file), file.parent / "run")


def test_every_reference_may_be_on_the_hub(protocol: Path, published: Path) -> None:
    file = write_study(protocol.parent / "a.yaml", {"stages": stages(), "evaluation": None})
    built = plan(file).stages
    opd = built["opd"].config
    assert opd.start == opd.tasks["compose"].teacher == Path(COMPOSE)
    assert opd.tasks["text"].teacher == Path(TEXT)
    assert opd.algorithm.anchor.adapter == Path(QUALITY)
    assert list(built["merged"].config.adapters) == [Path(COMPOSE), Path(TEXT)]
    assert built["opd"].needs == ()


def test_a_whole_network_on_the_hub_is_known_by_its_commit(hub: HubCache, tmp_path: Path) -> None:
    tiny_transformer(1).save_pretrained(tmp_path / "network")
    hub.put("lab/large", tmp_path / "network", revision="v1")
    found = Contents().of(Path("lab/large@v1"))
    assert found == {"network": f"lab/large@v1 at {COMMIT}"}


def test_a_stage_is_known_by_the_content_wherever_that_lies(
    protocol: Path, published: Path
) -> None:
    remote = write_study(protocol.parent / "a.yaml", {"stages": stages(), "evaluation": None})
    paths = [str(published / name.partition("@")[0]) for name in (COMPOSE, TEXT, QUALITY)]
    local = write_study(protocol.parent / "b.yaml", {"stages": stages(*paths), "evaluation": None})
    for name in ("merged", "opd"):
        assert plan(remote).stages[name].identity == plan(local).stages[name].identity


def test_a_study_runs_on_them_and_records_their_commits(protocol: Path, published: Path) -> None:
    changes = {
        "stages": stages(),
        "evaluation": {"protocol": "protocol.yaml", "rows": ["base", "opd"]},
    }
    file = write_study(protocol.parent / "a.yaml", changes)
    run = run_study(load_study(file), file.parent / "run", kinds=KINDS).folder / "stages"
    parents = json.loads((run / "merged" / "merge.json").read_text())["parents"]
    assert [parent["hub"] for parent in parents] == ["lab/fake-compose", "lab/fake-text"]
    assert {parent["commit"] for parent in parents} == {COMMIT}
    assert [parent["name"] for parent in parents] == ["fake-compose", "fake-text@v1"]
    notes = json.loads((run / "opd" / "adapter" / "flowopd.json").read_text())
    assert {one["hub"] for one in notes["hub"].values()} == {
        "lab/fake-compose",
        "lab/fake-text",
        "lab/fake-quality",
    }
    assert notes["hub"][notes["start"]] == {"hub": "lab/fake-compose", "commit": COMMIT}
    assert "lab/" not in json.dumps(notes["recipe"])


def test_a_typo_says_that_it_is_neither_here_nor_there(protocol: Path, published: Path) -> None:
    for changed in (stages("adapters/compos"), stages(quality="adapters/compos")):
        file = write_study(protocol.parent / "a.yaml", {"stages": changed, "evaluation": None})
        with pytest.raises(
            FlowOPDError,
            match=r"cannot be run: adapters/compos is no folder here, and cannot be fetched",
        ):
            plan(file)


def test_a_name_that_cannot_be_on_the_hub_is_refused_at_once(
    protocol: Path, published: Path
) -> None:
    file = write_study(protocol.parent / "a.yaml", {"stages": stages("a/b/c"), "evaluation": None})
    with pytest.raises(FlowOPDError, match=r"'a/b/c', which is neither a stage nor the path of"):
        build_plan(load_study(file), file.parent / "run", kinds=kinds())


def test_training_alone_takes_them(published: Path, protocol: Path) -> None:
    from flowopd.training.run import prepare

    data = {
        "model": "fake",
        "tasks": {
            "text": {"prompts": str(protocol.parent / "words.txt"), "teacher": TEXT},
        },
        "algorithm": {"name": "opd", "anchor": {"adapter": QUALITY}},
        "start": COMPOSE,
        "batch": {"prompts": 2},
        "rollout": {"steps": 3, "guidance": 1.0},
        "updates": 1,
    }
    config = build(TrainConfig, data)
    files = prepare(config).files
    assert {one.origin["hub"] for one in files.values()} == {
        "lab/fake-compose",
        "lab/fake-text",
        "lab/fake-quality",
    }
    assert build(TrainConfig, data | {"algorithm": {"name": "opd", "anchor": "base"}})


def test_commands_take_them(protocol: Path, published: Path, tmp_path: Path) -> None:
    def call(*arguments: Any) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result

    call("merge", COMPOSE, TEXT, "--out", tmp_path / "m", "--model", "fake")
    assert json.loads((tmp_path / "m" / "merge.json").read_text())["parents"][1]["commit"] == COMMIT
    call("eval", protocol, "--model", "fake", "--adapter", f"t={TEXT}", "--out", tmp_path / "e")
    row = json.loads((tmp_path / "e" / "results.json").read_text())["rows"][1]
    assert row["adapter"]["hub"] == "lab/fake-text"
    assert row["adapter"]["commit"] == COMMIT
    call(
        "sample",
        "--model",
        "fake",
        "--prompt",
        "a cup",
        "--adapter",
        QUALITY,
        "--out",
        "s",
        "steps=2",
    )
    record = json.loads((tmp_path / "s" / "sample.json").read_text())
    assert record["adapter"]["path"] == QUALITY
    assert record["adapter"]["commit"] == COMMIT


def test_commands_say_when_there_is_none(hub: HubCache, tmp_path: Path) -> None:
    for command in (
        ["merge", "lab/none", "--out", "m"],
        ["sample", "--model", "fake", "--prompt", "a", "--adapter", "lab/none", "--out", "s"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "lab/none is no folder here, and cannot be fetched" in " ".join(
            result.stderr.split()
        )


def test_a_protocol_names_them(protocol: Path, published: Path) -> None:
    data = {
        "name": "a",
        "prompts": [{"path": str(protocol.parent / "words.txt")}],
        "scorers": ["bright"],
        "model": "fake",
        "adapters": {"text": TEXT},
        "out": "out",
    }
    assert build(EvalConfig, data).adapters == {"text": Path(TEXT)}
