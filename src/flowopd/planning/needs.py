"""What a stage needs: of its devices, of the host, of the disk; in bytes, forwards and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from flowopd.training.division import Division

FIXED = int(0.7 * 2**30)
"""CUDA's context and the libraries' own workspaces: not measured, allowed for."""
SHARE = 0.04
"""Of what is not weights: gaps between blocks, and workspaces within operators."""


TRAIN, MERGE, EVALUATE = "train", "merge", "evaluate"
When = Literal["always", "encoding", "afterwards"]
"""Whether something is there throughout, while prompts are encoded, or from then on."""


class Phase(StrEnum):
    """Parts of a run, which need different amounts of memory."""

    ENCODE = "encode prompts"
    DRAW = "draw the rollout"
    TRAIN = "train"
    DECODE = "decode"
    STEP = "optimizer's step"
    PROBE = "probe"
    SAMPLE = "sample"
    """Of an evaluation, decoding included."""


@dataclass(frozen=True)
class Item:
    """Something that takes room."""

    name: str
    size: int
    note: str = ""
    when: When = "always"


@dataclass(frozen=True)
class PhaseNeed:
    """The most that a device holds in a phase."""

    phase: Phase
    held: int
    """Weights, adapters, optimizer: what is there whatever is computed."""
    working: int
    """Activations and other tensors that come and go."""

    @property
    def measured(self) -> int:
        return self.held + self.working

    @property
    def allowance(self) -> int:
        return FIXED + round(SHARE * self.working)

    @property
    def total(self) -> int:
        return self.measured + self.allowance


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found: what one device holds, in bytes, and how the work is divided."""

    division: Division
    parameters: int
    """How many numbers are trained."""
    student: int
    experts: int
    """Other adapters, with copies of layers that they are folded into."""
    networks: int
    """Whole networks beside the base."""
    hosted: int
    """What they take of host memory, if they wait there."""
    away: int
    """What of them is not on the device, at any time."""
    gradients: int
    optimizer: int
    averages: int
    embeddings: int
    """Of the prompts of a batch."""
    peaks: Mapping[Phase, int]
    """Above all of these and the weights."""


@dataclass(frozen=True)
class Change:
    """Settings that would lower the peak, and what it would be with them."""

    settings: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Work:
    """How much is computed. Forwards and backwards are of one sample; guidance makes two."""

    updates: int = 0
    images_per_update: int = 0
    division: str = ""
    """Over devices and passes, in words."""
    forwards_per_update: int = 0
    backwards_per_update: int = 0
    images: int = 0
    forwards: int = 0
    backwards: int = 0
    probes: int = 0
    """Forwards of the probes, which are not among `forwards`."""


@dataclass(frozen=True)
class StageNeeds:
    """Of one stage, and of others that are the same but for names."""

    names: tuple[str, ...]
    kind: str
    work: Work
    held: Sequence[Item] = ()
    """On one device, at one time or another."""
    phases: Sequence[PhaseNeed] = ()
    host: Sequence[Item] = ()
    disk: Sequence[Item] = ()
    notes: Sequence[str] = ()
    changes: Sequence[Change] = field(default=())

    @property
    def worst(self) -> PhaseNeed | None:
        """The phase that needs most; None where nothing was measured."""
        return max(self.phases, key=lambda need: need.total, default=None)

    def record(self, memory: int | None) -> dict[str, Any]:
        """For machines: plain data, sizes in bytes."""
        worst = self.worst
        return {
            "stages": list(self.names),
            "kind": self.kind,
            "work": vars(self.work),
            "held": [vars(item) for item in self.held],
            "phases": [
                {
                    "phase": need.phase,
                    "held": need.held,
                    "working": need.working,
                    "allowance": need.allowance,
                    "total": need.total,
                }
                for need in self.phases
            ],
            "peak": None if worst is None else worst.total,
            "fits": None if worst is None or memory is None else worst.total <= memory,
            "host": [vars(item) for item in self.host],
            "disk": [vars(item) for item in self.disk],
            "notes": list(self.notes),
            "changes": [vars(change) for change in self.changes],
        }
