"""Reading the files of an unfinished run: what is absent or torn is left out, and said."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopd.logs import read_log

Line = Mapping[str, Any]


class RunFiles:
    """Reads below a run's folder; ``problems`` gathers sentences on what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def mapping(self, path: Path) -> Mapping[str, Any]:
        """The object that a JSON file holds; empty when there is none."""
        return as_mapping(self._json(path, dict))

    def entries(self, path: Path) -> list[Mapping[str, Any]]:
        """The objects of the list that a JSON file holds; none when there is no such file."""
        return [as_mapping(entry) for entry in self._json(path, list) or ()]

    def lines(self, path: Path) -> list[Line]:
        """The lines of a log in the order of their updates.

        A resumed run writes some again: the last of them counts. What follows the last newline was
        cut off, or is being written.
        """
        found, damaged = read_log(path)
        if damaged:
            self.say(path, f"has lines that cannot be read ({damaged}), which are left out")
        lines = {line["update"]: line for line in found}
        return [lines[update] for update in sorted(lines)]

    def say(self, path: Path, problem: str) -> None:
        sentence = f"{path.relative_to(self.folder).as_posix()} {problem}."
        if sentence not in self.problems:
            self.problems.append(sentence)

    def _json(self, path: Path, kind: type) -> Any:
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            self.say(path, "is no valid JSON and is left out")
            return None
        if not isinstance(found, kind):
            self.say(path, "holds something else than it should and is left out")
            return None
        return found


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The mapping, or an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def as_number(value: Any) -> float | None:
    """The finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
