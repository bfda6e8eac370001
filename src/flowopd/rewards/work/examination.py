"""What can be seen of a scorer before it is relied on: its self-check, its speed, its memory."""

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import (
    ChecksItself,
    ChecksRecords,
    Finding,
    Loads,
    Scorer,
    ShowsItself,
)
from flowopd.rewards.work.calls import in_words
from flowopd.rewards.work.memory import resident_memory
from flowopd.tasks.prompts import PromptRecord

IMAGES = 8
"""In a call whose time is taken."""
SECONDS = 2.0
"""For about how long calls are made then."""
MOST_CALLS = 16


@dataclass(frozen=True)
class Examination:
    """What was found; ``problem`` says why nothing more was."""

    findings: tuple[Finding, ...] = ()
    checks_itself: bool = False
    images_per_second: float | None = None
    host_bytes: int = 0
    """By which the process grew."""
    device_bytes: int = 0
    """The most that the GPUs held at once."""
    problem: str = ""

    @property
    def good(self) -> bool:
        return not self.problem and all(finding.good for finding in self.findings)


def load(scorer: Scorer) -> int:
    """Read the weights, if there are such; by how many bytes the process grew."""
    before = _host_bytes()
    try:
        if isinstance(scorer, Loads):
            scorer.load()
    except FlowOPDError:
        raise
    except Exception as error:
        raise FlowOPDError(
            f"The scorer {scorer.name!r} cannot be loaded: {in_words(error)}"
        ) from error
    return max(0, _host_bytes() - before)


def examine(scorer: Scorer, *, speed: bool) -> Examination:
    """Let it check itself, and take its time if that is wanted."""
    before = _host_bytes()
    _forget_peak()
    try:
        checks = isinstance(scorer, ChecksItself)
        findings = tuple(scorer.self_check()) if isinstance(scorer, ChecksItself) else ()
        rate = images_per_second(scorer) if speed else None
    except FlowOPDError as error:
        return Examination(problem=str(error))
    except Exception as error:
        return Examination(problem=f"its self-check failed: {in_words(error)}")
    grown = max(0, _host_bytes() - before)
    return Examination(findings, checks, rate, grown, _peak())


def images_per_second(scorer: Scorer) -> float | None:
    """On its own example, after a call to warm up; None if it shows none and needs one."""
    if isinstance(scorer, ShowsItself):
        picture, record = scorer.example()
    elif scorer.tasks is None and not isinstance(scorer, ChecksRecords):
        picture, record = _noise(), PromptRecord("a red apple on a table")
    else:
        return None
    images, records = np.stack([picture] * IMAGES), [record] * IMAGES
    scorer.score(images, records)
    start, calls = time.monotonic(), 0
    while calls < MOST_CALLS and (time.monotonic() - start < SECONDS or not calls):
        scorer.score(images, records)
        calls += 1
    return calls * IMAGES / max(time.monotonic() - start, 1e-9)


def _noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)


def _host_bytes() -> int:
    """What the process holds now, or where the system does not say, the most that it ever did."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resident_memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)


def _peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return sum(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))
