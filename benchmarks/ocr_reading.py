"""How well and how fast `ocr` reads: rendered texts, one process, and four.

python benchmarks/ocr_reading.py [COUNT] [PROCESSES]
"""

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowopd.rewards.ocr.text import plain
from flowopd.rewards.scorer import Scores
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work.jury import Jury
from flowopd.tasks.prompts import PromptRecord
from rendered_text import Sign, signs

WRONG_SHOWN = 20
PATIENCE = 7200.0


def records_of(shown: Sequence[Sign]) -> list[PromptRecord]:
    return [PromptRecord("a sign", "ocr", meta={"target": one.text}) for one in shown]


class Timed(NamedTuple):
    scores: list[Scores]
    seconds: float
    """From when the processes are ready."""
    busy: float
    """Seconds of all processes together on a core, their start with it."""


def in_processes(shown: Sequence[Sign], processes: int) -> Timed:
    """The scores of all, by so many worker processes."""
    spec = ScorerSpec.model_validate({"name": "ocr", "processes": processes, "timeout": PATIENCE})
    scorer = spec.load()
    images, records = np.stack([one.image for one in shown]), records_of(shown)
    busy = _busy()
    with Jury([(spec, scorer)]) as jury:
        jury.load()
        jury.call(scorer, images[:processes], records[:processes]).result()
        began = time.perf_counter()
        scores = jury.call(scorer, images, records).result()
        seconds = time.perf_counter() - began
    return Timed(scores, seconds, _busy() - busy)


def _busy() -> float:
    """What processes that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(count: int = 500, processes: int = 4) -> None:
    shown = signs(count)
    single, several = in_processes(shown, 1), in_processes(shown, processes)
    one = single.scores
    values = [score.values["ocr"] for score in one]
    right = sum(value == 1 for value in values)
    same = sum(
        plain("".join(score.detail["read"])) == plain(sign.text)
        for score, sign in zip(one, shown, strict=True)
    )
    fonts = Counter(sign.font for sign in shown)
    print(f"{count} rendered texts in {len(fonts)} fonts: {', '.join(sorted(fonts))}")
    print(f"score 1 (the text is contained in what was read): {right} ({right / count:.1%})")
    print(f"nothing but the text was read: {same} ({same / count:.1%})")
    print(f"mean score: {np.mean(values):.4f}")
    for name, timed in (("1 process", single), (f"{processes} processes", several)):
        print(f"{name}: {timed.seconds / count:.3f} s each, {timed.busy / count:.3f} s on a core")
    print(
        f"times as fast: {single.seconds / several.seconds:.2f}, on {os.cpu_count()} cores with a "
        f"load of {os.getloadavg()[1]:.1f}"
    )
    equal = [score.values for score in one] == [score.values for score in several.scores]
    print(f"the same scores: {equal}")
    wrong = [(s, score) for s, score in zip(shown, one, strict=True) if score.values["ocr"] != 1]
    for sign, score in wrong[:WRONG_SHOWN]:
        print(
            f"  {sign.text!r} read as {score.detail['read']} ({sign.font} {sign.size}, {sign.kind})"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
