from pathlib import Path

import pytest
from pydantic import Field, model_validator

from flowopd.config import Config, build, dump_yaml, load_config
from flowopd.errors import FlowOPDError


class Sampling(Config):
    steps: int = Field(10, ge=1)
    guidance: float = 1.0


class Study(Config):
    sampling: Sampling = Sampling()
    stages: list[Sampling] = Field(default_factory=list)
    teacher: Sampling | None = None
    name: str = "study"
    seed: int = 0


def test_file_then_options_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("seed: 1\nname: file\nsampling: {steps: 3, guidance: 2}\n")
    study = load_config(
        Study, file, ["sampling.steps=5", "seed=3"], options={"seed": 2, "name": "x: y"}
    )
    assert study == Study(seed=3, name="x: y", sampling=Sampling(steps=5, guidance=2.0))


def test_overrides_reach_into_lists_and_empty_places() -> None:
    study = load_config(
        Study, None, ["stages=[{}, {}]", "stages.1.steps=7", "teacher.guidance=1e-3"]
    )
    assert study.stages == [Sampling(), Sampling(steps=7)]
    assert study.teacher == Sampling(guidance=0.001)


def test_dumped_yaml_reads_back(tmp_path: Path) -> None:
    study = load_config(Study, None, ["name='ü: 1'", "stages=[{steps: 2}]", "teacher.steps=4"])
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_yaml(study), encoding="utf-8")
    assert load_config(Study, file) == study


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load_config(Study, file) == Study()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.step=3", "Unknown key 'sampling.step'. Did you mean 'sampling.steps'?"),
        ("sampling.step=3", "The keys under 'sampling' are: guidance, steps."),
        ("sead=3", "Unknown key 'sead'. Did you mean 'seed'?"),
        ("stages=[{stepz: 1}]", "Unknown key 'stages.0.stepz'. Did you mean 'stages.0.steps'?"),
        ("teacher.stepz=1", "Unknown key 'teacher.stepz'. Did you mean 'teacher.steps'?"),
        ("sampling.steps=-3", "'sampling.steps' is -3; it should be greater than or equal to 1."),
        ("seed=many", "The key 'seed' is 'many'; it should be a valid integer"),
        ("seed=true", "The key 'seed' is True; it should be a number."),
        ("name=[1]", "The key 'name' is [1]; it should be a valid string."),
        ("sampling=4", "The key 'sampling' is 4; it should be keys and values."),
        ("stages.2.steps=4", "'stages'"),
        ("seed.a=1", "'seed' is {'a': 1}; it should be a valid integer."),
        ("seed", "has no '='"),
        ("a..b=1", "has an empty part"),
        ("seed={a: [}", "is not valid YAML"),
        ("teacher={steps: 1, steps: 2}", "'steps' is given twice"),
    ],
)
def test_a_wrong_override_ends_in_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(FlowOPDError) as caught:
        load_config(Study, None, [override])
    assert sentence in str(caught.value)


def test_a_scalar_has_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("seed: 1\n")
    with pytest.raises(FlowOPDError, match="'seed' is 1, which has no keys"):
        load_config(Study, file, ["seed.a=1"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- 1\n", "holds [1]; a configuration file holds keys and values"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice (line 2)"),
        ("seed: [\n", "is not valid YAML"),
        ("stepz: 1\n", "Unknown key 'stepz'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(content)
    with pytest.raises(FlowOPDError) as caught:
        load_config(Study, file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match=r"There is no configuration file .*none\.yaml"):
        load_config(Study, tmp_path / "none.yaml")


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(FlowOPDError) as caught:
        load_config(Study, None, ["sampling.steps=0", "sead=1"])
    assert len(str(caught.value).splitlines()) == 2


def test_a_boolean_is_no_number_even_where_none_may_stand() -> None:
    from flowopd.policy.generate import SamplingConfig

    for override in ("steps=true", "shift=true", "height=false"):
        with pytest.raises(FlowOPDError, match="it should be a number"):
            load_config(SamplingConfig, overrides=[override])


def test_yaml_merge_keys_work(tmp_path: Path) -> None:
    from flowopd.policy.generate import SamplingConfig

    path = tmp_path / "config.yaml"
    path.write_text("<<: {steps: 3, guidance: 2.0}\nsteps: 5\n")
    config = load_config(SamplingConfig, path)
    assert (config.steps, config.guidance) == (5, 2.0)


@pytest.mark.parametrize(
    "value",
    [
        "2024-13-45",
        "!!int x",
        "!!int ''",
        "!!float x",
        "!!bool x",
        "!!timestamp x",
        "!!map x",
        "!!binary ü",
        "[" * 3000,
    ],
)
def test_values_that_yaml_stumbles_over_end_in_a_sentence(tmp_path: Path, value: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"name: {value}\n", encoding="utf-8")
    with pytest.raises(FlowOPDError, match=r"study\.yaml is not valid YAML: ."):
        load_config(Study, file)
    with pytest.raises(
        FlowOPDError, match=r"^the override .*name=.* is not valid YAML: ."
    ) as caught:
        load_config(Study, None, [f"name={value}"])
    assert len(str(caught.value)) < 300


class Range(Config):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low should not be more than high")
        return self


def test_an_error_of_the_whole_is_its_message_alone() -> None:
    with pytest.raises(FlowOPDError) as caught:
        load_config(Range, None, ["low=2"])
    assert str(caught.value) == "low should not be more than high."
    with pytest.raises(FlowOPDError) as caught:
        build(Range, 3)
    assert str(caught.value) == "The configuration should be keys and values."
    with pytest.raises(FlowOPDError, match=r"'part' is {'low': 2}; low should not"):
        build(Range, {"low": 2}, prefix="part")
