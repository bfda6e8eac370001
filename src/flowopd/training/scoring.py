"""The pictures of a batch on their way to rewards: scored while the next ones are drawn."""

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.policy.generate import Images, not_finite, to_uint8
from flowopd.rewards.reward import Rewards, Scored
from flowopd.rewards.scorer import Scorer
from flowopd.rewards.work.calls import Call, call_now
from flowopd.tasks.prompts import PromptRecord

if TYPE_CHECKING:
    from flowopd.training.method import Batch, Context, Part

NAMED, MOST_NEWS = 3, 10
"""Reasons that a sentence gives, and that a run does; the log has all."""
NOT_FINITE = "the picture is not made of finite numbers"


class Scoring:
    """Takes the parts of a batch, in their order, as soon as each is drawn.

    Where a scorer compares the images of a prompt, it is given those of all processes, at the end.
    """

    def __init__(self, batch: "Batch", context: "Context") -> None:
        self._batch, self._context = batch, context
        self._images: list[Images] = []
        self._records: list[PromptRecord] = []
        self._tasks: list[str] = []
        self._calls: list[tuple[Scorer, Sequence[int], Call]] = []
        self._broken: list[int] = []

    @torch.no_grad()
    def add(self, part: "Part", x0: Tensor) -> None:
        """The next part, drawn."""
        decoded = self._context.model.decode(x0)
        images = to_uint8(decoded)
        records = [sample.record for sample in part.samples]
        tasks = [sample.task for sample in part.samples]
        first = len(self._records)
        self._broken += [first + i for i in not_finite(x0, decoded)]
        self._records += records
        self._tasks += tasks
        reward, jury = self._context.reward, self._context.jury
        if jury is None or reward.grouped:
            self._images.append(images)
        if jury is None:
            return
        for scorer, chosen in reward.needed(tasks):
            if not scorer.grouped:
                call = jury.call(scorer, images[chosen], [records[i] for i in chosen])
                self._calls.append((scorer, [first + i for i in chosen], call))

    def rewards(self, *, only_logged: bool = False) -> Tensor:
        """The reward of every sample [B], NaN where it is missing; logged by task and part.

        All processes have to ask. They refuse together to go on when too many are missing, unless
        rewards are `only_logged`.
        """
        found, meter = self._found(), self._context.meter
        self._leave_out_broken(found)
        values = torch.from_numpy(found.values)
        for part in self._batch.parts:
            meter.add(f"task/{part.task}/reward", values[part.places])
        for metric, numbers in found.parts.items():
            meter.add(f"reward/{metric}", torch.from_numpy(numbers))
        meter.add("missing_rewards", values.isnan().double())
        self._note_missing(found, only_logged)
        return values

    def _found(self) -> Rewards:
        reward = self._context.reward
        if self._context.jury is None and not reward.grouped:
            images = np.concatenate(self._images) if self._images else np.zeros((0, 1, 1, 3), "u1")
            return reward(images, self._records, self._tasks)
        together = self._compared() if reward.grouped else []
        own = [Scored(scorer, places, call.result()) for scorer, places, call in self._calls]
        return reward.rewards([*own, *together], self._tasks)

    def _leave_out_broken(self, found: Rewards) -> None:
        """What a scorer said of a picture that is none is no reward."""
        for i in self._broken:
            found.reasons[i] = NOT_FINITE
            for values in (found.values, *found.parts.values()):
                values[i] = np.nan

    def _compared(self) -> list[Scored]:
        """This process's part of what scorers say that compare images."""
        reward, jury, ranks = self._context.reward, self._context.jury, self._context.ranks
        mine = np.concatenate(self._images) if self._images else None
        parts = ranks.collect((mine, self._records, self._tasks))
        first = sum(len(records) for _, records, _ in parts[: ranks.index])
        images = np.concatenate([some for some, _, _ in parts if some is not None])
        records = [record for _, some, _ in parts for record in some]
        tasks = [task for _, _, some in parts for task in some]
        own = range(first, first + len(self._records))
        found = []
        for scorer, chosen in reward.needed(tasks):
            if not scorer.grouped and jury is not None:
                continue
            begin = call_now if jury is None else jury.call
            call = begin(scorer, images[chosen], [records[i] for i in chosen])
            pairs = [(i, s) for i, s in zip(chosen, call.result(), strict=True) if i in own]
            found.append(Scored(scorer, [i - first for i, _ in pairs], [s for _, s in pairs]))
        return found

    def _note_missing(self, found: Rewards, only_logged: bool) -> None:
        """Count what is missing, by its reasons, and refuse to go on where it is too much."""
        context = self._context
        parts = context.ranks.collect((len(found.values), Counter(found.reasons.values())))
        count = sum(count for count, _ in parts)
        reasons = sum((own for _, own in parts), Counter[str]())
        context.missing.add(reasons)
        said = (
            f"{reasons.total()} of the {count} rewards of update {context.update + 1} are missing"
        )
        most = context.config.rewards.most_missing
        if reasons.total() > most * count and not only_logged:
            raise FlowOPDError(
                f"{said}, more than rewards.most_missing allows ({most:.0%}): {in_words(reasons)}. "
                "Once the scorer is mended, the same command goes on from the last checkpoint."
            )
        if context.missing.news(reasons) and context.ranks.main:
            print(f"warning: {said}: {in_words(reasons)}.", file=sys.stderr)


class Missing:
    """Why rewards are missing, and how many, since they were last taken."""

    def __init__(self) -> None:
        self._reasons, self._known = Counter[str](), set[str]()

    def add(self, reasons: Mapping[str, int]) -> None:
        self._reasons += Counter(reasons)

    def take(self) -> dict[str, int]:
        """All of them, the most frequent first; then the count starts anew."""
        found = dict(self._reasons.most_common())
        self._reasons.clear()
        return found

    def news(self, reasons: Collection[str]) -> bool:
        """Whether a reason is among them that was not there before; after some, none is news."""
        new = set(reasons) - self._known
        told = len(self._known) >= MOST_NEWS
        self._known |= new
        return bool(new) and not told


def in_words(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons, with their numbers."""
    ordered = Counter(reasons).most_common()
    said = "; ".join(f"{reason.rstrip('.')} ({number})" for reason, number in ordered[:NAMED])
    return said + (f"; and {len(ordered) - NAMED} other reasons" if len(ordered) > NAMED else "")
