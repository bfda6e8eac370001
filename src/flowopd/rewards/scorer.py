"""The protocol of a scorer: a batch of images in, named numbers or a reason for none out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord


@dataclass(frozen=True)
class MetricInfo:
    """One number that a scorer reads off an image, with its native range (None: unbounded).

    ``strata``: the metric of a set of images is the mean over the tags of each tag's mean
    (as GenEval does), and not the mean over the images.
    """

    name: str
    low: float | None = None
    high: float | None = None
    strata: bool = False
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scores:
    """What a scorer read off one image. A missing value is None and has its reason."""

    values: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Scorer(Protocol):
    """Reads images. ``tasks``: the tasks whose records it can score (None: all of them).

    ``grouped``: the value of an image depends on the other images of its prompt, so that a call
    must hold all the images of each prompt in it. Prompts with one image only are left out.
    """

    name: str
    version: int
    """Counts up when the same image would score differently; part of a protocol's identity."""
    metrics: tuple[MetricInfo, ...]
    tasks: frozenset[str] | None
    grouped: bool

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        """One Scores for each of the images [B, H, W, 3], whose records are ``records``."""
        ...


@runtime_checkable
class ChecksRecords(Protocol):
    """A scorer that can tell beforehand which records it cannot score."""

    def check(self, record: PromptRecord) -> None:
        """Raise a FlowOPDError that says what the record lacks."""
        ...


def check_record(name: str, scorer: Scorer, record: PromptRecord) -> None:
    """Refuse a record that the scorer says it cannot score."""
    if not isinstance(scorer, ChecksRecords):
        return
    try:
        scorer.check(record)
    except FlowOPDError as error:
        raise FlowOPDError(
            f"The scorer {name!r} cannot score the prompt {record.prompt!r}: {error}"
        ) from None


def applies(scorer: Scorer, record: PromptRecord) -> bool:
    """Whether the scorer scores images of this record."""
    return scorer.tasks is None or record.task in scorer.tasks
