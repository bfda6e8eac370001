"""What the folder of a stage says of it, written so that a kill at any moment loses nothing.

`stage.json` comes first and says whose folder it is; `done.json` comes last and makes the stage
done. Between the two the stage is under way: it is run again in the same folder, where a training
and an evaluation go on from what is there. A folder of another identity is moved aside.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.files import sha256, write_atomic
from flowopd.study.kinds import Made
from flowopd.study.plan import Plan, Stage

STAGE, DONE, OUTPUT, REPLACED = "stage.json", "done.json", "output.log", "replaced"
CHECKPOINTS, CHECKPOINT = "checkpoints", "update-"
NO_IDENTITY = "unknown"


class State(Enum):
    NEW = "new"
    STARTED = "started"
    CHANGED = "changed"
    DONE = "done"


@dataclass(frozen=True)
class Found:
    """A stage's folder as it is."""

    state: State
    made: Made | None = None
    """Of a stage that is done."""
    outputs: dict[str, str] | None = None


def look(stage: Stage) -> Found:
    """What is there of a stage. Writes nothing."""
    done = read_json(stage.folder / DONE)
    if done.get("identity") == stage.identity:
        with suppress(KeyError, TypeError, ValueError):
            made = Made(int(done["images"]), int(done["forwards"]), float(done["seconds"]))
            return Found(State.DONE, made, {str(k): str(v) for k, v in done["outputs"].items()})
    if not stage.folder.is_dir():
        return Found(State.NEW)
    found = read_json(stage.folder / STAGE).get("identity")
    if found == stage.identity:
        return Found(State.STARTED)
    if found is None and not any(_leftovers(stage.folder)):
        return Found(State.NEW)
    return Found(State.STARTED if _goes_on(stage) else State.CHANGED)


def _goes_on(stage: Stage) -> bool:
    """Whether what is there is a beginning of this training: only `updates` is another."""
    course = read_json(stage.folder / STAGE).get("course")
    if stage.course is None or course != stage.course:
        return False
    update = resumes_at(stage)
    if update is None:  # what is finished, and has no checkpoint any more, is kept
        return not (stage.folder / DONE).exists()
    return update <= stage.config.updates


def claim(stage: Stage, plan: Plan) -> Path | None:
    """Make the folder this stage's; where to what another configuration left there was moved."""
    aside = None
    if look(stage).state is State.CHANGED:
        aside = _set_aside(stage, plan.folder / REPLACED)
    stage.folder.mkdir(parents=True, exist_ok=True)
    if read_json(stage.folder / DONE).get("identity") != stage.identity:
        (stage.folder / DONE).unlink(missing_ok=True)  # a shorter training, which goes on
    record = {
        "name": stage.name,
        "kind": stage.kind,
        "identity": stage.identity,
        "course": stage.course,
        "config": plan.kind(stage).record(stage.config),
        "needs": list(stage.needs),
    }
    _write(stage.folder / STAGE, record)
    return aside


def finish(stage: Stage, plan: Plan, made: Made) -> None:
    """Record what the stage took, and the checksums of what others use of it. It is done then."""
    outputs = {
        path.relative_to(stage.folder).as_posix(): sha256(path)
        for pattern in plan.kind(stage).outputs
        for path in sorted(stage.folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")
    }
    record = {"identity": stage.identity, **made._asdict(), "outputs": outputs}
    _write(stage.folder / DONE, record)


def verify(stage: Stage) -> None:
    """Refuse a finished stage whose outputs are not what it wrote."""
    for name, digest in (look(stage).outputs or {}).items():
        path = stage.folder / name
        problem = ""
        if not path.is_file():
            problem = "is missing"
        elif sha256(path) != digest:
            problem = "is not what the stage wrote (its SHA-256 differs)"
        if problem:
            raise FlowOPDError(
                f"The stage {stage.name!r} is done, but {path} {problem}. Put the file back, or "
                f"delete the folder {stage.folder} to have the stage done again."
            )


def resumes_at(stage: Stage) -> int | None:
    """The update of the last checkpoint of a training that is under way."""
    with suppress(OSError):
        names = [path.name for path in (stage.folder / CHECKPOINTS).iterdir()]
        numbers = [n.removeprefix(CHECKPOINT) for n in names if n.startswith(CHECKPOINT)]
        return max((int(number) for number in numbers if number.isdecimal()), default=None)
    return None


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log; empty when there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is none, or it is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _set_aside(stage: Stage, replaced: Path) -> Path:
    """By one renaming, to a name that is free."""
    replaced.mkdir(parents=True, exist_ok=True)
    found = read_json(stage.folder / STAGE).get("identity")
    name = f"{stage.name}-{found[:8] if isinstance(found, str) else NO_IDENTITY}"
    target, number = replaced / name, 2
    while target.exists():
        target, number = replaced / f"{name}-{number}", number + 1
    stage.folder.rename(target)
    return target


def _leftovers(folder: Path) -> Iterator[Path]:
    """What somebody put there; hidden files are what a killed writer left."""
    return (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != OUTPUT)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
