"""Prompt files: one prompt a line (.txt), or one JSON object a line (.jsonl)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError


@dataclass(frozen=True)
class PromptRecord:
    """A prompt, the task it belongs to, its stratum within the task, and what a scorer needs."""

    prompt: str
    task: str = ""
    tag: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: Path | str, task: str = "") -> list[PromptRecord]:
    """The records of a prompt file; ``task`` is the task of those that name none."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise FlowOPDError(f"There is no prompt file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FlowOPDError(f"The prompt file {path} cannot be read: {error}.") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise FlowOPDError(f"The prompt file {path} is empty; it needs a prompt on each line.")
    if path.suffix == ".jsonl":
        return [_record(line, task, f"{path}, line {number}") for number, line in numbered]
    if path.suffix == ".txt":
        return [PromptRecord(line, task) for _, line in numbered]
    raise FlowOPDError(
        f"The prompt file {path} ends in neither .txt (a prompt a line) nor .jsonl "
        '({"prompt": ...} a line).'
    )


def take(records: Sequence[PromptRecord], limit: int | None) -> list[PromptRecord]:
    """``limit`` records, the first of every tag in turn, in the order of the file."""
    if limit is None or limit >= len(records):
        return list(records)
    by_tag: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_tag.setdefault(record.tag, []).append(index)
    rounds = zip_longest(*by_tag.values())
    turns = [index for turn in rounds for index in turn if index is not None]
    return [records[index] for index in sorted(turns[:limit])]


def _record(line: str, task: str, where: str) -> PromptRecord:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise FlowOPDError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise FlowOPDError(f'{where} is no JSON object; write {{"prompt": ...}} on each line.')
    prompt = data.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise FlowOPDError(f'{where} has no "prompt" with a text; every line needs one.')
    own_task, tag = data.pop("task", task), data.pop("tag", "")
    if not isinstance(own_task, str) or not isinstance(tag, str):
        raise FlowOPDError(f'{where}: "task" and "tag" have to be texts.')
    return PromptRecord(prompt, own_task, tag, data)
