"""The scorers of a run: which there are, and the check without which they are not relied on."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopd.rewards.scorer import Scorer
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work import Jury
from flowopd.rewards.work.checking import check_jury
from flowopd.team import Team
from flowopd.training.checks import scores_rollouts

if TYPE_CHECKING:
    from flowopd.training.run import TrainPlan

RECORD = "reward_check.jsonl"
"""A line for each time that the run was begun or gone on with."""


def scorers_at_work(plan: "TrainPlan", *, main: bool) -> list[tuple[ScorerSpec, Scorer]]:
    """Those that rewards are read from, and in the main process those of the probes."""
    pairs = list(zip(plan.config.scorers, plan.scorers, strict=True))
    found = [
        (spec, scorer)
        for spec, scorer in pairs
        if scores_rollouts(plan.config) and scorer in plan.reward.used
    ]
    if plan.probe is not None and main:
        known = [scorer for _, scorer in found]
        probed = zip(plan.probe.config.scorers, plan.probe.scorers, strict=True)
        found += [(spec, scorer) for spec, scorer in probed if scorer not in known]
    return found


def check_rewards(plan: "TrainPlan", jury: Jury, team: Team, folder: Path) -> None:
    """Refuse, in all processes, scorers that read wrong; what was found is noted in the folder."""
    if not scorers_at_work(plan, main=True):
        return
    if not plan.config.check_rewards:
        if team.main:
            print("warning: the reward check is skipped.", file=sys.stderr)
            _note({"skipped": True}, folder)
        return
    found = check_jury(jury, team)
    if team.main:
        findings = [
            {"scorer": name, **asdict(finding)} for name, each in found for finding in each.findings
        ]
        _note({"skipped": False, "findings": findings}, folder)


def _note(line: dict[str, Any], folder: Path) -> None:
    with (folder / RECORD).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
