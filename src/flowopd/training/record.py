"""The record of a run: a JSON line for every update, and accelerate's trackers by name."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.files import write_atomic
from flowopd.logs import Line, read_log


class JsonLines:
    """A file that grows by a line; of an earlier process, what it wrote up to `update` is kept."""

    def __init__(self, path: Path, update: int, *, including: bool = True) -> None:
        self.path = path
        lines = read_lines(path)
        kept = [line for line in lines if line["update"] <= update - (not including)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; of those that a full disk or a crash left damaged, a warning."""
    lines, damaged = read_log(path)
    if damaged:
        said = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
        print(f"warning: {said} left out of {path}.", file=sys.stderr)
    return lines


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Six significant digits; JSON has no word for what is not finite, and it is left out."""
    return {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}


class Trackers:
    """TensorBoard, wandb and others, through accelerate."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self._trackers: list[Any] = []
        if not names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        check_trackers(names)
        for name in names:
            cls = LOGGER_TYPE_TO_CLASS[name]
            place = {"logging_dir": str(folder)} if cls.requires_logging_directory else {}
            tracker = cls("flowopd", **place)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(_flat(config))
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], update: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=update)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(one, "value", one)) for one in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(
                sorted(str(getattr(one, "value", one)) for one in LOGGER_TYPE_TO_CLASS)
            )
            raise FlowOPDError(f"There is no tracker {name!r}; accelerate knows {known}.")
        if name not in available:
            raise FlowOPDError(f"The tracker {name!r} is not installed: pip install {name}.")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            flat[prefix + key] = value if plain else json.dumps(value)
    return flat
