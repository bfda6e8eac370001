"""A study as its YAML file spells it: stages, how they are evaluated, what the report shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from flowopd.config import Config, FilePath, Seed, load_config, parse_override, read_yaml
from flowopd.errors import FlowOPDError
from flowopd.models import ModelField, model_keys
from flowopd.reporting.config import ReportConfig
from flowopd.rewards.settings import WrittenScorer, by_name
from flowopd.study.names import BASE, EVAL, unknown

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
StageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$")]
"""Without dots: they part a stage from its seed, and the keys of an override."""


def _each_once(values: list[Any]) -> list[Any]:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"each may be there once, and {twice[0]!r} is there again")
    return values


class StageConfig(Config):
    """One stage: a training or a merge, in the keys of its kind."""

    train: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    seeds: list[Seed] | None = Field(None, min_length=1)
    """Of a training: one stage for each. null: the seed of `train`, or 0."""

    _seeds_once = field_validator("seeds")(
        lambda value: value if value is None else _each_once(value)
    )

    @property
    def kind(self) -> str:
        return "merge" if self.train is None else "train"

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.train is None) == (self.merge is None):
            raise ValueError("a stage has either 'train' or 'merge'")
        if self.train is None and self.seeds is not None:
            raise ValueError("seeds goes with 'train'; a merge draws nothing but dare's 'seed'")
        if self.seeds is not None and self.train is not None and "seed" in self.train:
            raise ValueError("seeds and train.seed say the same; keep one")
        return self


class PanelConfig(Config):
    """Pictures for the report: one of each prompt and seed."""

    prompts: list[str] = Field(min_length=1)
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)


class EvaluationConfig(Config):
    """Which stages are evaluated, and how."""

    protocol: FilePath
    rows: list[str] = Field(min_length=1)
    average: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """The metrics that are averaged, and what each is divided by first."""
    panel: PanelConfig | None = None

    _rows_once = field_validator("rows")(_each_once)


class StudyConfig(Config):
    """A study file."""

    shorthands = {  # noqa: RUF012
        "model": model_keys,
        "scorers.*": by_name,
        "train.scorers.*": by_name,
        "train.probe.scorers.*": by_name,
        "stages.*.train.scorers.*": by_name,
        "stages.*.train.probe.scorers.*": by_name,
    }

    name: Name
    folder: Path | None = None
    """What the paths of stages are relative to; null: the folder of this file."""
    model: ModelField
    scorers: list[WrittenScorer] = Field(default_factory=list)
    """For the rewards of every training stage."""
    check_rewards: bool = True
    """Whether scorers check themselves before trainings and evaluations."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What stages pick from by name; the keys that a stage gives replace those here."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Defaults of every training stage."""
    stages: dict[StageName, StageConfig] = Field(min_length=1)
    evaluation: EvaluationConfig | None = None
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name in (BASE, EVAL):
            if name in self.stages:
                raise ValueError(f"no stage can be called {name!r}; give it another name")
        if "tasks" in self.train:
            raise ValueError(
                "train has 'tasks': shared tasks stand under the study's own key 'tasks', and "
                "every stage picks from them"
            )
        return self

    @model_validator(mode="after")
    def _rows_are_stages(self) -> Self:
        for row in self.evaluation.rows if self.evaluation else ():
            if row not in self.stages and row != BASE:
                raise FlowOPDError(
                    f"The row {row!r} of 'evaluation.rows' is no stage."
                    + unknown(row, [BASE, *self.stages], "rows can be")
                )
        return self


@dataclass(frozen=True)
class Study:
    """A study file as read."""

    config: StudyConfig
    source: Path

    @property
    def folder(self) -> Path:
        """What relative paths in its stages are relative to."""
        assert self.config.folder is not None
        return self.config.folder


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a file, changed by ``key.sub=value``."""
    _refuse_new_stages(path, overrides)
    config = load_config(StudyConfig, path, overrides)
    beside = path.absolute().parent
    folder = beside if config.folder is None else beside / config.folder
    return Study(config.model_copy(update={"folder": folder}), path)


def _refuse_new_stages(path: Path, overrides: Sequence[str]) -> None:
    """An override with a misspelt stage would make a stage, and end in a puzzling sentence."""
    changes = [parse_override(text).keys for text in overrides]
    named = [str(keys[1]) for keys in changes if keys[0] == "stages" and len(keys) > 1]
    stages = read_yaml(path).get("stages") if named else None
    if not isinstance(stages, dict):
        return
    for name in named:
        if name not in map(str, stages):
            raise FlowOPDError(
                f"An override changes the stage {name!r}, which {path} does not have."
                + unknown(name, list(map(str, stages)), "stages are")
            )
