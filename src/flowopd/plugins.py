"""Plug-ins: model families, scorers and command groups, found by name through entry points."""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flowopd.errors import FlowOPDError

Group = Literal["models", "scorers", "commands"]
GROUPS: tuple[Group, ...] = ("models", "scorers", "commands")
SINGULAR: dict[Group, str] = {"models": "model", "scorers": "scorer", "commands": "command group"}

SCORER_PARTS = ("name", "version", "metrics", "tasks", "grouped", "score")
"""What a scorer has, as `flowopd.rewards.scorer.Scorer` says."""

# What importing somebody else's module raises when it, or what it needs, is broken.
IMPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    FlowOPDError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Status(NamedTuple):
    """A plug-in as the doctor sees it; ``problem`` is empty when it imports."""

    group: str
    name: str
    target: str
    problem: str


def found(group: Group) -> dict[str, EntryPoint]:
    """The group's entry points by name, in the order of their names."""
    points = entry_points(group=f"flowopd.{group}")
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


def load(group: Group, name: str) -> Any:
    """What the plug-in of that name points to: a class, or a typer application."""
    points = found(group)
    if name not in points:
        raise FlowOPDError(_unknown(group, name, list(points)))
    try:
        return points[name].load()
    except IMPORT_ERRORS as error:
        raise FlowOPDError(
            f"The {SINGULAR[group]} {name!r} ({points[name].value}) cannot be imported: "
            f"{type(error).__name__}: {error}."
        ) from error


def load_scorer(spec: str | Mapping[str, Any], *, folder: Path | None = None) -> Any:
    """A scorer made ready but for its weights.

    ``spec`` is the name of a plug-in, ``path/to/file.py:Class``, or a mapping with that as its
    ``name`` and the scorer's settings; paths are relative to ``folder``.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name")
    settings = scorer_settings(name, given, folder)
    cls = scorer_class(name, folder)
    try:
        scorer = cls() if settings is None else cls(settings)
    except IMPORT_ERRORS as error:
        raise FlowOPDError(f"The scorer {name!r} cannot be started: {error}") from error
    _check_scorer(name, scorer)
    return scorer


def scorer_settings(name: str, given: Mapping[str, Any], folder: Path | None = None) -> Any:
    """The checked settings of a scorer that has such (``Settings``); None for another."""
    own = getattr(scorer_class(name, folder), "Settings", None)
    if own is not None:
        from flowopd.config import build

        return build(own, dict(given), prefix=name, context={"folder": folder or Path.cwd()})
    if given:
        keys = ", ".join(repr(key) for key in given)
        raise FlowOPDError(f"The scorer {name!r} has no settings, and is given {keys}.")
    return None


def scorer_class(name: str, folder: Path | None = None) -> Any:
    """The class behind the name of a plug-in or ``path/to/file.py:Class``."""
    file = scorer_file(name, folder)
    if file is None:
        return load("scorers", name)
    return _from_file(file, name.rpartition(":")[2])


def scorer_file(name: str, folder: Path | None = None) -> Path | None:
    """The file of ``path/to/file.py:Class``, in ``folder`` if it is there; None for a plug-in."""
    path, colon, _ = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None
    beside = Path(path) if folder is None else folder / path
    return beside if beside.is_file() else Path(path)


def check() -> list[Status]:
    """Every plug-in found, and what keeps it from being imported."""
    statuses = []
    for group in GROUPS:
        for name, point in found(group).items():
            problem = ""
            try:
                load(group, name)
            except FlowOPDError as error:
                problem = str(error)
            statuses.append(Status(group, name, point.value, problem))
    return statuses


def _check_scorer(name: str, scorer: Any) -> None:
    """Refuse what lacks something that every scorer has."""
    missing = [part for part in SCORER_PARTS if not hasattr(scorer, part)]
    if missing:
        raise FlowOPDError(
            f"The scorer {name!r} lacks {', '.join(missing)}; every scorer has "
            f"{', '.join(SCORER_PARTS)} (see flowopd.rewards.scorer.Scorer)."
        )


def _from_file(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise FlowOPDError(f"There is no file {path} to take the scorer {attribute!r} from.")
    name = f"flowopd_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FlowOPDError(f"{path} cannot be imported as a Python module.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except IMPORT_ERRORS as error:
        raise FlowOPDError(
            f"{path} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    if not hasattr(module, attribute):
        raise FlowOPDError(f"{path} defines no {attribute!r}; name the scorer's class.")
    return getattr(module, attribute)


def _unknown(group: Group, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(known) or "none"
    return f"There is no {SINGULAR[group]} {name!r}.{hint} Known {group}: {listed}."
