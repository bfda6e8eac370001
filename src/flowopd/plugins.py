"""Plug-ins: model families, scorers and command groups, found by name through entry points."""

import sys
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flowopd.errors import FlowOPDError

Group = Literal["models", "scorers", "commands"]
GROUPS: tuple[Group, ...] = ("models", "scorers", "commands")
SINGULAR: dict[Group, str] = {"models": "model", "scorers": "scorer", "commands": "command group"}

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


def load_scorer(name: str) -> Any:
    """A scorer made ready: the name of a plug-in, or ``path/to/file.py:Class``."""
    path, colon, attribute = name.rpartition(":")
    cls = (
        _from_file(Path(path), attribute)
        if colon and path.endswith(".py")
        else load("scorers", name)
    )
    try:
        return cls()
    except IMPORT_ERRORS as error:
        raise FlowOPDError(f"The scorer {name!r} cannot be started: {error}") from error


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
