"""Where every row comes from: stages with their settings, identities and hashes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from flowopd.reporting.run_files import as_mapping, as_number
from flowopd.reporting.run_folder import EVALUATION, Run, Stage, is_seed_of


class SeedRecord(NamedTuple):
    """One stage of a group: what identifies it, and what it has taken and made."""

    name: str
    state: str
    identity: str
    images: str
    seconds: str
    outputs: Mapping[str, str]


class StageGroup(NamedTuple):
    """A stage of the study with all its seeds."""

    name: str
    kind: str
    needs: Sequence[str]
    config: str
    records: Sequence[SeedRecord]


class Evaluation(NamedTuple):
    """A stage that evaluates, and the hash of the adapter that it saw."""

    name: str
    state: str
    identity: str
    adapter: str


def group_names(run: Run) -> list[str]:
    """The stages that train or merge, in the study's order; seeds count as their first."""
    names = [name for name in run.stages if not name.startswith(EVALUATION)]
    return [
        name
        for name in names
        if not any(other != name and is_seed_of(name, other) for other in names)
    ]


def stage_groups(run: Run) -> list[StageGroup]:
    """Every stage but the evaluations, which appear with what they evaluate."""
    return [_group(run, name) for name in group_names(run)]


def _group(run: Run, name: str) -> StageGroup:
    stages = run.seeds(name)
    return StageGroup(
        name=name,
        kind=stages[0].kind,
        needs=[str(need) for need in stages[0].record.get("needs") or ()],
        config=_without(run.roots, as_yaml(stages[0].config)),
        records=[_record(stage) for stage in stages],
    )


def _without(roots: Sequence[str], text: str) -> str:
    for root in roots:
        text = text.replace(root, "")
    return text


def evaluations(run: Run) -> list[Evaluation]:
    """The stages that evaluate, in the study's order."""
    stages = [stage for name, stage in run.stages.items() if name.startswith(EVALUATION)]
    return [
        Evaluation(
            stage.name,
            stage.state or "done",
            _identity(stage),
            str(as_mapping(_adapter(run, stage)).get("sha256") or ""),
        )
        for stage in stages
    ]


def _adapter(run: Run, stage: Stage) -> Any:
    return run.evaluation(stage.name.removeprefix(EVALUATION)).get("adapter")


def _identity(stage: Stage) -> str:
    return str(stage.done.get("identity") or stage.record.get("identity") or "")


def _record(stage: Stage) -> SeedRecord:
    outputs = as_mapping(stage.done.get("outputs"))
    images, seconds = as_number(stage.done.get("images")), as_number(stage.done.get("seconds"))
    return SeedRecord(
        name=stage.name,
        state=stage.state or "done",
        identity=_identity(stage),
        images="" if images is None else f"{images:,.0f}",
        seconds="" if seconds is None else f"{seconds:,.0f}",
        outputs={str(path): str(digest) for path, digest in outputs.items()},
    )


def as_yaml(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100)
