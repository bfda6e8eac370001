"""Scores of a row, one JSON line an image, written while the evaluation runs.

A killed run leaves whole lines and at most one broken last one. The next run keeps the prompts
that have all their images and scores the others again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.files import write_atomic

Line = dict[str, Any]
KEY_LENGTH = 16


class ScoreFile:
    """The lines of one row, for prompts that have ``counts`` images.

    ``source`` tells which weights the images came from.
    """

    def __init__(self, path: Path, *, protocol: str, source: str, counts: Sequence[int]) -> None:
        self.path = path
        self.keys = {"protocol": protocol[:KEY_LENGTH], "source": source[:KEY_LENGTH]}
        self.lines: list[Line] = []
        self.restarted = False
        if path.exists():
            self._resume(counts)

    @property
    def done(self) -> frozenset[int]:
        """The indices of the prompts whose images are all scored."""
        return frozenset(line["prompt_index"] for line in self.lines)

    def append(self, lines: Iterable[Line]) -> None:
        """Write lines out at once."""
        added = [{**line, **self.keys} for line in lines]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_dump(line) for line in added))
        self.lines += added

    def forget(self, lines: Iterable[Line]) -> None:
        """Drop the prompts of these lines, so that they are drawn and scored again."""
        lost = {line["prompt_index"] for line in lines}
        if lost:
            self.lines = [line for line in self.lines if line["prompt_index"] not in lost]
            write_atomic(self.path, "".join(_dump(line) for line in self.lines))

    def _resume(self, counts: Sequence[int]) -> None:
        found = _read(self.path)
        self.restarted = any(line["source"] != self.keys["source"] for line in found)
        if self.restarted:
            found = []
        have = Counter(line["prompt_index"] for line in found)
        whole = {index for index, count in enumerate(counts) if have[index] == count}
        self.lines = [line for line in found if line["prompt_index"] in whole]
        write_atomic(self.path, "".join(_dump(line) for line in self.lines))


def refuse_other_protocol(path: Path, protocol: str) -> None:
    """Scores of other prompts, seeds, sampling or scorers are not gone on with."""
    if path.exists() and any(line["protocol"] != protocol[:KEY_LENGTH] for line in _read(path)):
        raise FlowOPDError(
            f"{path} holds scores of another protocol; choose another --out, or delete the file."
        )


def _dump(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> list[Line]:
    """The whole lines; what follows the last newline was cut off by whatever ended the run."""
    lines: list[Line] = []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict) or not {"protocol", "source", "prompt_index"} <= line.keys():
            raise FlowOPDError(
                f"{path}, line {number} is not a line of scores; delete the file or that line."
            )
        lines.append(line)
    return lines
