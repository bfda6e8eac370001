"""From the stages of a study file to plain settings: defaults, tasks and references filled in."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.hub import hub_name
from flowopd.study.config import StageConfig, Study
from flowopd.study.names import ADAPTER, BASE, seed_names, unknown


@dataclass(frozen=True)
class Draft:
    """A stage with everything that its settings refer to, before they are checked."""

    name: str
    origin: str
    """The key under ``stages`` that it comes from."""
    kind: str
    data: dict[str, Any]
    needs: tuple[str, ...]


def drafts(study: Study, stages: Path) -> dict[str, Draft]:
    """Every training and merge, one for each seed. ``stages`` is where their folders are."""
    names = {
        origin: seed_names(origin, stage.seeds or [0])
        for origin, stage in study.config.stages.items()
    }
    known = [name for group in names.values() for name in group]
    found: dict[str, Draft] = {}
    for origin, stage in study.config.stages.items():
        for number, name in enumerate(names[origin]):
            links = Links(origin, names[origin], known, stages, study.folder)
            if "model" in {**study.config.train, **(stage.train or stage.merge or {})}:
                raise FlowOPDError(
                    f"The stage {origin!r} names a model; all stages of a study have the same one, "
                    "under the study's own key 'model'."
                )
            if stage.kind == "merge":
                data = _merge_data(stage, links)
            else:
                data = _train_data(study, origin, stage, links)
                if stage.seeds is not None:
                    data["seed"] = stage.seeds[number]
            found[name] = Draft(name, origin, stage.kind, data, tuple(dict.fromkeys(links.needs)))
    return found


def merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, and what is ``own`` wins.

    Two mappings with another ``name`` are of different kinds (two algorithms): nothing is merged.
    """
    result = deepcopy(dict(defaults))
    for key, value in own.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and not _other_kind(before, value):
            result[key] = merged(before, value)
        else:
            result[key] = deepcopy(value)
    return result


def _other_kind(before: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "name" in value and "name" in before and value["name"] != before["name"]


class Links:
    """Looks names of stages up, for one stage (``own``: its names), and notes which it needs."""

    def __init__(
        self, origin: str, own: Sequence[str], known: Sequence[str], stages: Path, folder: Path
    ) -> None:
        self.origin, self.own, self.known = origin, own, known
        self.stages, self.folder = stages, folder
        self.needs: list[str] = []

    def path(self, value: Any, key: str) -> Any:
        """The adapter that a value means; what is no text is left to the configuration's checks."""
        if not isinstance(value, str):
            return value
        place = f"'stages.{self.origin}.{key}'"
        if value in self.own:
            raise FlowOPDError(
                f"{place} names {value!r}, the stage itself: a student cannot be a teacher, or a "
                "start, of itself. Name another stage, or the path of an adapter."
            )
        if value in self.known:
            self.needs.append(value)
            return adapter_of(self.stages, value)
        path = self.folder / value
        if path.exists():
            return path
        if hub_name(value) is None:
            others = [name for name in self.known if name not in self.own]
            raise FlowOPDError(
                f"{place} names {value!r}, which is neither a stage nor the path of an adapter "
                f"(there is no {path}), and no adapter on the hub (org/name)."
                + unknown(value, others, "other stages are")
            )
        return Path(value)


def adapter_of(stages: Path, name: str) -> Path:
    return stages / name / ADAPTER


def _train_data(study: Study, origin: str, stage: StageConfig, links: Links) -> dict[str, Any]:
    assert stage.train is not None
    own = {key: value for key, value in stage.train.items() if key != "tasks"}
    data = merged(study.config.train, own)
    if "tasks" in stage.train:
        data["tasks"] = _tasks(study, origin, stage.train["tasks"], links)
    if "start" in data:
        data["start"] = links.path(data["start"], "train.start")
    algorithm = data.get("algorithm")
    if isinstance(algorithm, dict) and "anchor" in algorithm:
        algorithm["anchor"] = _anchor(algorithm["anchor"], links)
    shared = {"scorers": study.config.scorers, "check_rewards": study.config.check_rewards}
    return {**shared, **data, "model": study.config.model}


def _tasks(study: Study, origin: str, picked: Any, links: Links) -> Any:
    """The shared definitions of the tasks that are picked, with the keys that the stage changes."""
    shared = study.config.tasks
    if isinstance(picked, list):
        picked = {name: {} for name in map(str, picked)}
    if not isinstance(picked, dict):
        return picked
    tasks: dict[str, Any] = {}
    for name, changes in picked.items():
        if name not in shared:
            raise FlowOPDError(
                f"The stage {origin!r} has the task {name!r}, which the study does not define "
                "under 'tasks'." + unknown(str(name), list(shared), "tasks are")
            )
        if not isinstance(changes, dict | None):
            tasks[name] = changes
            continue
        task = deepcopy({**shared[name], **(changes or {})})
        if "teacher" in task:
            task["teacher"] = links.path(task["teacher"], f"train.tasks.{name}.teacher")
        tasks[name] = task
    return tasks


def _anchor(anchor: Any, links: Links) -> Any:
    """Any spelling of an anchor, with its adapter looked up; ``base`` stays the base."""
    if isinstance(anchor, str):
        anchor = {"adapter": anchor}
    if not isinstance(anchor, dict) or anchor.get("adapter") in (None, BASE):
        return anchor
    found = links.path(anchor["adapter"], "train.algorithm.anchor")
    return {**anchor, "adapter": found}


def _merge_data(stage: StageConfig, links: Links) -> dict[str, Any]:
    assert stage.merge is not None
    data = deepcopy(stage.merge)
    adapters = data.get("adapters")
    if not isinstance(adapters, dict):
        return data
    found: dict[Any, Any] = {}
    for name, weight in adapters.items():
        path = links.path(name, "merge.adapters")
        if path in found:
            raise FlowOPDError(
                f"The stage {links.origin!r} merges the adapter {name!r} twice; give it once, with "
                "the sum of its weights."
            )
        found[path] = weight
    return {**data, "adapters": found}
