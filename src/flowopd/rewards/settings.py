"""How a configuration names a scorer, and the settings that a scorer may have of its own."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from flowopd import plugins
from flowopd.config import Config, build
from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.hub import hub_name

PATIENCE = 600.0
SHARED = ("timeout", "processes", "tasks")
"""The keys of every scorer, beside its name."""


def _model_place(place: str, info: ValidationInfo) -> str:
    folder = Path((info.context or {}).get("folder") or Path.cwd())
    for path in (folder / place, Path.cwd() / place):
        if path.exists():
            return str(path.absolute())
    if hub_name(place) is None:
        raise ValueError(f"there is no {folder / place}, and it is no hub id (org/name)")
    return place


ModelPlace = Annotated[str, AfterValidator(_model_place)]
"""A folder or a file, beside the configuration or else from the working folder; where there is
neither, a hub id (``org/name``, ``org/name@revision``). What is there becomes an absolute path."""


class ScorerSettings(Config):
    """What all scorers with settings of their own have; a scorer's ``Settings`` inherits it."""

    HOUSEKEEPING: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})
    """Keys that do not change a number."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    batch_size: int = Field(16, ge=1)
    """Pictures that go through its network at once."""

    def identity(self) -> dict[str, Any]:
        """What changes the scorer's numbers, as far as it is not the default.

        Files and folders stand there by their content. A new default needs a new ``version``.
        """
        data = self.model_dump(mode="json", exclude=set(self.HOUSEKEEPING), exclude_defaults=True)
        return {key: _by_content(value) for key, value in data.items()}


class ScorerSpec(Config):
    """A scorer as a configuration names it: a name, or a name with settings.

    ``name`` is a plug-in's, or ``path/to/file.py:Class``.
    """

    name: str = Field(min_length=1)
    timeout: float = Field(PATIENCE, gt=0)
    """Seconds after which a call is given up."""
    processes: int | None = Field(None, ge=1)
    """How many processes of its own it works in; null: by the number of cores for a scorer that
    wants such, and else a thread of this process."""
    tasks: list[str] | None = Field(None, min_length=1)
    """Of what it can read, the tasks whose prompts it reads here; null: all."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The scorer's own keys. Those of one that cannot be imported are not checked before `load`."""

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            return value
        _check_keys(value)
        shared = {key: value[key] for key in ("name", *SHARED) if key in value}
        own = {key: one for key, one in value.items() if key not in shared}
        folder = (info.context or {}).get("folder")
        return {**shared, "settings": own} if folder is None else _placed(shared, own, Path(folder))

    @model_serializer
    def _as_written(self) -> Any:
        fields = type(self).model_fields
        shared = {
            key: getattr(self, key) for key in SHARED if getattr(self, key) != fields[key].default
        }
        more = {**shared, **self.settings}
        return {"name": self.name, **more} if more else self.name

    def load(self) -> Any:
        """The scorer, ready but for its weights."""
        scorer = plugins.load_scorer({"name": self.name, **self.settings})
        seconds = getattr(getattr(scorer, "settings", None), "call_seconds", None)
        if seconds is not None and seconds >= self.timeout:
            raise FlowOPDError(
                f"The scorer {self.name!r} has call_seconds: {seconds:g}, and is given up after "
                f"timeout: {self.timeout:g} with all that it has found by then; make the first "
                "less than the second."
            )
        if self.tasks is not None:
            self._narrow(scorer, frozenset(self.tasks))
        return scorer

    def identity(self) -> dict[str, Any]:
        """The settings that change what it gives; empty for the scorer as it comes."""
        given = plugins.scorer_settings(self.name, self.settings)
        tasks = {} if self.tasks is None else {"tasks": sorted(self.tasks)}
        return tasks if given is None else {**given.identity(), **tasks}

    def _narrow(self, scorer: Any, tasks: frozenset[str]) -> None:
        known = tasks if scorer.tasks is None else scorer.tasks
        for task in sorted(tasks - known):
            raise FlowOPDError(
                f"The scorer {self.name!r} is given the task {task!r}, and reads only prompts of "
                f"{', '.join(map(repr, sorted(known)))}."
            )
        try:
            scorer.tasks = tasks
        except AttributeError:
            raise FlowOPDError(
                f"The scorer {self.name!r} does not let its tasks be narrowed ('tasks' cannot be "
                "set); leave the key out, or make it an attribute."
            ) from None

    @property
    def file(self) -> Path | None:
        """The file that its class is in, if it is named by one."""
        return plugins.scorer_file(self.name)

    @property
    def title(self) -> str:
        """Its name without the folder of its file."""
        file = self.file
        return self.name if file is None else f"{file.name}:{self.name.rpartition(':')[2]}"


def _as_written(value: Any) -> Any:
    return build(ScorerSpec, value, prefix="scorers").model_dump()


WrittenScorer = Annotated[Any, AfterValidator(_as_written)]
"""What names a scorer, kept as it is written: for a configuration that only hands it on."""


def by_name(name: str) -> dict[str, Any]:
    """The keys that a name alone stands for, so that overrides can add to them."""
    return {"name": name}


def _check_keys(value: Mapping[Any, Any]) -> None:
    if "name" not in value:
        raise FlowOPDError(
            f"A scorer is given as {dict(value)!r}, without a 'name'; write a name, or "
            "{name: NAME, device: cuda:1} with its settings."
        )
    for key in value:
        if not isinstance(key, str):
            raise FlowOPDError(f"The scorer {value['name']!r} has the key {key!r}, which is none.")


def _placed(shared: dict[str, Any], own: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the paths that are relative to the configuration's folder made absolute."""
    name = shared["name"]
    file = plugins.scorer_file(name, folder) if isinstance(name, str) else None
    if file is not None and file.parent.is_relative_to(folder) and file.is_file():
        shared = shared | {"name": f"{file}:{name.rpartition(':')[2]}"}
    try:
        plugins.scorer_class(shared["name"])
    except FlowOPDError:
        return {**shared, "settings": own}  # said when it is loaded, if ever it is
    found = plugins.scorer_settings(shared["name"], own, folder)
    if found is not None:
        own = found.model_dump(mode="json", exclude_defaults=True)
    return {**shared, "settings": own}


def _by_content(value: Any) -> Any:
    """What stands for an existing file or folder, wherever it is."""
    if not isinstance(value, str) or not Path(value).is_absolute() or not Path(value).exists():
        return value
    path = Path(value)
    if path.is_file():
        return {"sha256": _digest(path, path.stat().st_mtime_ns)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    content = [[p.relative_to(path).as_posix(), _digest(p, p.stat().st_mtime_ns)] for p in files]
    return {"sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


@lru_cache(maxsize=4096)
def _digest(path: Path, changed: int) -> str:
    return sha256(path)
