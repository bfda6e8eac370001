"""Doing stages in this process, one after the other."""

import gc
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from flowopd.errors import FlowOPDError
from flowopd.locks import LOCKS, locked
from flowopd.study.plan import Plan, Stage
from flowopd.study.records import State, claim, finish, look, verify
from flowopd.team import Team
from flowopd.training.interrupt import Interrupted
from flowopd.training.ranks import is_main, processes

Failures = dict[str, str]
"""Why stages were not done, by name."""


def do_all(plan: Plan, todo: Sequence[Stage], team: Team) -> Failures:
    """Every stage; one that fails stops those that stand on it, and no others."""
    failures: Failures = {}
    for stage in todo:
        reason = blocked(stage, failures)
        if not reason:
            say(f"{stage.name}: started")
            try:
                do(stage, plan, team)
            except Interrupted:
                raise
            except (FlowOPDError, OSError) as error:
                if processes() > 1:
                    raise
                reason = str(error)
            _free_device()
        if reason:
            failures[stage.name] = reason
        say(f"{stage.name}: {f'failed: {reason}' if reason else took(stage)}")
    return failures


def do(stage: Stage, plan: Plan, team: Team) -> None:
    """One stage, unless it is done by now."""
    kind = plan.kind(stage)
    lock = locked(plan.folder / LOCKS / stage.name, f"The stage {stage.name!r}")
    with lock if team.main else nullcontext():
        team.wait()
        done = look(stage).state is State.DONE
        team.wait()  # nobody may look any more when the main process begins to write
        if done:
            return
        if team.main:
            for need in stage.needs:
                verify(plan.stages[need])
            say_aside(stage, claim(stage, plan))
        team.wait()
        made = kind.run(stage.config, stage.folder) if team.main or kind.everywhere else None
        if team.main and made is not None:
            finish(stage, plan, made)
        team.wait()


def blocked(stage: Stage, failures: Failures) -> str:
    """Why a stage cannot be done after what failed; empty if it can."""
    broken = [need for need in stage.needs if need in failures]
    return f"it stands on {broken[0]}, which failed" if broken else ""


def _free_device() -> None:
    """Networks refer to themselves, and hold a device's memory until Python looks for such."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def took(stage: Stage) -> str:
    made = look(stage).made
    if made is None:
        return "done"
    images = f"{made.images:,} images in " if made.images else ""
    return f"done: {images}{made.seconds:,.1f} s"


def say_aside(stage: Stage, moved: Path | None) -> None:
    if moved is not None:
        say(f"{stage.name}: what was there is of other settings; it is now {moved}")


def say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)
