"""The check that comes before scorers are relied on."""

from collections.abc import Sequence

from flowopd.errors import FlowOPDError
from flowopd.rewards.work.examination import Examination
from flowopd.rewards.work.jury import Jury
from flowopd.team import Team

SKIP = "--skip-reward-check"


def check_jury(jury: Jury, team: Team) -> list[tuple[str, Examination]]:
    """Load every scorer; refuse, in all processes, if the main one finds that one reads wrong.

    What was found, in the main process.
    """
    found = jury.examine() if team.main else []
    problem = team.collect(refusal(found))[0]
    if problem:
        raise FlowOPDError(problem)
    if not team.main:
        jury.load()
    return found


def refusal(found: Sequence[tuple[str, Examination]], *, hint: bool = True) -> str:
    """What is wrong with the scorers, in words; empty if nothing is."""
    wrong = [
        one if one.startswith("The scorer ") else f"{name}: {one}"
        for name, result in found
        for one in complaints(result)
    ]
    if not wrong:
        return ""
    said = f"The reward check failed: {'; '.join(wrong)}."
    if not hint:
        return said
    return f"{said} Nothing was begun; mend the scorer, or go on without the check ({SKIP})."


def complaints(result: Examination) -> list[str]:
    if result.problem:
        return [result.problem.rstrip(".")]
    return [
        f"{one.what} gave {in_digits(one.value)}, expected {one.expected}"
        for one in result.findings
        if not one.good
    ]


def in_digits(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4g}"
