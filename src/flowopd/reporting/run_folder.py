"""The folder of a study as the report reads it; the study may be unfinished."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowopd.config import build, read_yaml
from flowopd.errors import FlowOPDError
from flowopd.reporting.config import ReportConfig
from flowopd.reporting.run_files import Line, RunFiles, as_mapping, as_number

STUDY, RESULTS, STAGES = "study.yaml", "results.json", "stages"
EVALUATION = "eval."
BASE, AVERAGE = "base", "average"
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Stage:
    """One stage; empty where its folder, or a file in it, is not there."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    done: Mapping[str, Any]
    log: Sequence[Line]
    probe: Sequence[Line]

    @property
    def kind(self) -> str:
        return str(self.record.get("kind", ""))

    @property
    def config(self) -> Mapping[str, Any]:
        return as_mapping(self.record.get("config"))

    @property
    def state(self) -> str:
        """How far the stage is, in words; empty when it is done."""
        if self.done:
            return ""
        if not self.record and not self.log:
            return NOT_BEGUN
        if not self.log:
            return "begun"
        total = as_mapping(self.config.get("train", self.config)).get("updates")
        return f"at update {self.log[-1]['update']}" + (f" of {total}" if total else "")


@dataclass(frozen=True)
class Picture:
    """A picture of a row's panel; its path is None when the file is not there."""

    prompt: str
    seed: int
    path: Path | None


@dataclass(frozen=True)
class Run:
    """What a study has made until now."""

    folder: Path
    name: str
    config: ReportConfig
    rows: Sequence[str]
    """Of the study's evaluation, in its order, evaluated or not."""
    divisors: Mapping[str, float]
    """What each metric of the average is divided by."""
    stages: Mapping[str, Stage]
    results: Mapping[str, Any]
    files: RunFiles
    roots: Sequence[str] = ()
    """Folders that paths in the stages' settings are shown relative to."""

    @cached_property
    def entries(self) -> dict[str, Mapping[str, Any]]:
        """The rows of the results by name."""
        return {row["name"]: row for row in self.results.get("rows", ())}

    def metric(self, row: str, metric: str) -> Mapping[str, Any] | None:
        """Mean and interval, or None when they are not known."""
        found = as_mapping(self.entries.get(row, {}).get("metrics")).get(metric)
        return found if found and as_number(found.get("mean")) is not None else None

    def seeds(self, row: str) -> list[Stage]:
        """The stages that a row stands for, one for each of its seeds."""
        return [stage for name, stage in self.stages.items() if is_seed_of(name, row)]

    def panel(self, row: str) -> list[Picture]:
        """The row's pictures for the report, of its first seed."""
        folder = self.folder / STAGES / f"{EVALUATION}{row}"
        return [_picture(folder, entry) for entry in self.files.entries(folder / "panel.json")]

    def evaluation(self, row: str) -> Mapping[str, Any]:
        """What `flowopd eval` wrote of the row's first seed: model, adapter, versions, warnings."""
        found = self.files.mapping(self.folder / STAGES / f"{EVALUATION}{row}" / RESULTS)
        rows = [as_mapping(entry) for entry in found.get("rows") or ()]
        return next((entry for entry in rows if entry.get("name") == row), rows[-1] if rows else {})


def read_run(folder: Path) -> Run:
    """Everything but the pictures."""
    if not (folder / STUDY).is_file():
        raise FlowOPDError(
            f"{folder} is no folder of a study: there is no {STUDY} in it. Give the folder that "
            "`flowopd run` writes."
        )
    study = read_yaml(folder / STUDY)
    evaluation, place = as_mapping(study.get("evaluation")), study.get("folder")
    report = study.get("report") or {}
    config = build(ReportConfig, report, prefix="report", where=str(folder / STUDY))
    files = RunFiles(folder)
    results = _results(files, folder / RESULTS)
    evaluated = [row["name"] for row in results.get("rows", ())]
    rows = list(dict.fromkeys([*map(str, evaluation.get("rows") or ()), *evaluated]))
    divisors = as_mapping(results.get("average") or evaluation.get("average"))
    names = _stage_names(folder / STAGES, as_mapping(study.get("stages")), rows)
    return Run(
        folder=folder,
        name=str(study.get("name") or folder.name),
        config=config,
        rows=rows,
        divisors={str(name): float(divisor) for name, divisor in divisors.items()},
        stages={name: _stage(files, folder / STAGES / name) for name in names},
        results=results,
        files=files,
        roots=[f"{folder.absolute() / STAGES}/", *([f"{place}/"] if place else [])],
    )


def is_seed_of(stage: str, name: str) -> bool:
    """Whether a stage is `name` itself, or another seed of it (`name.s1`)."""
    return re.fullmatch(re.escape(name) + r"(\.s\d+)?", stage) is not None


def _stage_names(folder: Path, stages: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """The study's stages in its order, with the seeds that lie in the folder."""
    seeds = {str(name): _seed_names(str(name), as_mapping(stages[name])) for name in stages}
    names = [name for group in seeds.values() for name in group]
    names += [f"{EVALUATION}{name}" for row in rows for name in seeds.get(row, [row])]
    found = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    others = [name for name in found if not seeds or any(is_seed_of(name, own) for own in names)]
    return list(dict.fromkeys([*names, *others]))


def _seed_names(name: str, stage: Mapping[str, Any]) -> list[str]:
    others = (stage.get("seeds") or [0])[1:]
    return [name, *(f"{name}.s{seed}" for seed in others)]


def _stage(files: RunFiles, folder: Path) -> Stage:
    return Stage(
        name=folder.name,
        folder=folder,
        record=files.mapping(folder / "stage.json"),
        done=files.mapping(folder / "done.json"),
        log=files.lines(folder / "log.jsonl"),
        probe=files.lines(folder / "probe.jsonl"),
    )


def _results(files: RunFiles, path: Path) -> Mapping[str, Any]:
    found = files.mapping(path)
    rows = found.get("rows", [])
    if isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and isinstance(row.get("metrics"), dict)
        for row in rows
    ):
        return found
    files.say(path, "has no rows with names and metrics and is left out")
    return {}


def _picture(folder: Path, entry: Mapping[str, Any]) -> Picture:
    """The file is named relative to the stage or to its panel, and lies inside the stage."""
    name = str(entry.get("file", ""))
    paths = [(folder / name).resolve(), (folder / "panel" / name).resolve()]
    inside = folder.resolve()
    found = [path for path in paths if path.is_file() and path.is_relative_to(inside)]
    return Picture(str(entry.get("prompt", "")), entry.get("seed", 0), found[0] if found else None)
