"""What the commands share: CONFIG.yaml and key=value arguments, options as configuration keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowopd.errors import FlowOPDError


class Arguments(NamedTuple):
    """The positional arguments of a command, told apart."""

    config: Path | None
    overrides: list[str]


def split_arguments(arguments: Sequence[str] | None) -> Arguments:
    """One YAML file at most, and any number of key=value."""
    files: list[Path] = []
    overrides: list[str] = []
    for argument in arguments or ():
        if Path(argument).suffix in (".yaml", ".yml") and "=" not in argument:
            files.append(Path(argument))
        elif "=" in argument:
            overrides.append(argument)
        else:
            missing = "" if Path(argument).exists() else ", and there is no such file or folder"
            raise FlowOPDError(
                f"The argument {argument!r} is neither a configuration (.yaml) nor key=value"
                f"{missing}."
            )
    if len(files) > 1:
        raise FlowOPDError(f"One configuration file at most, not {len(files)}: {files}.")
    return Arguments(files[0] if files else None, overrides)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line, as configuration keys."""
    return {key: value for key, value in options.items() if value is not None and value != []}
