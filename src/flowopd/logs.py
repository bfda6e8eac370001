"""Reading a log: JSON lines, each of an update."""

import json
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]


class Log(NamedTuple):
    lines: list[Line]
    damaged: int
    """How many others there are: no objects, or without the number of an update."""


def read_log(path: Path) -> Log:
    """The whole lines of a file that may be absent; a last one that a kill cut off is left out."""
    if not path.is_file():
        return Log([], 0)
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    read = [_line(text) for text in texts if text.strip()]
    lines = [line for line in read if line is not None]
    return Log(lines, len(read) - len(lines))


def _line(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("update")) is int else None
