"""The protocol of a scorer: a batch of images in, named numbers or a reason for none out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord


class UnavailableError(FlowOPDError):
    """The whole scorer cannot score, whatever the pictures are: a server is away, a key refused.

    A scorer that raises it in `score` is not called again for the same pictures in smaller parts.
    """


@dataclass(frozen=True)
class MetricInfo:
    """One number that a scorer reads off an image, with its native range (None: unbounded).

    ``strata``: the metric of a set of images is the mean over the tags of each tag's mean
    (as GenEval does), and not the mean over the images. ``scale``: what a reward divides the
    native value by, if it says nothing else, to bring it to about 0–1 (5 for a scale of 1 to 5).
    """

    name: str
    low: float | None = None
    high: float | None = None
    strata: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Scores:
    """What a scorer read off one image. A missing value is None and has its reason."""

    values: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What users want to know of a scorer before they use it."""

    models: tuple[str, ...] = ()
    """Hub ids, or packages that bring their models along."""
    licence: str = ""
    """Of the models, or of the code where there are none."""
    cost: str = ""
    """Time and memory, in words."""


@dataclass(frozen=True)
class Finding:
    """What a self-check found: a value beside what it has to be, in words."""

    what: str
    value: float | None
    expected: str
    good: bool


@runtime_checkable
class Scorer(Protocol):
    """Reads images. ``tasks``: the tasks whose records it can score (None: all of them).

    ``grouped``: the value of an image depends on the other images of its prompt, so that a call
    must hold all the images of each prompt in it. Prompts with one image only are left out.

    Making one is cheap: it reads no weights and asks no network. A class with a ``Settings`` (a
    ``flowopd.rewards.settings.ScorerSettings``) is called with such, another with nothing. What
    a scorer may have besides is in the protocols below, and

    - ``about``: an `About`;
    - ``workers = "processes"``: it is used in processes of its own, one instance in each, and
      never in this one; otherwise in a thread of its own, by one call at a time;
    - ``transient(error)``: whether an exception that `score` raised may be gone the next time.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Counts up when the same image would score differently; part of a protocol's identity."""
        ...

    @property
    def metrics(self) -> tuple[MetricInfo, ...]: ...

    @property
    def tasks(self) -> frozenset[str] | None: ...

    @property
    def grouped(self) -> bool: ...

    def score(self, images: NDArray[np.uint8], records: Sequence[PromptRecord]) -> list[Scores]:
        """One Scores for each of the images [B, H, W, 3], whose records are ``records``."""
        ...


@runtime_checkable
class Loads(Protocol):
    """A scorer with something expensive, as weights; its `score` loads it if nobody did before."""

    def load(self) -> None:
        """Read the weights, or raise a FlowOPDError that says what is missing and where from."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A scorer that gives back what it holds, as memory and connections, when it is not needed."""

    def close(self) -> None:
        """What is asked of it afterwards makes it load again."""
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A scorer that can tell, by pictures of known answer, whether it works here."""

    def self_check(self) -> list[Finding]:
        """What it read off them; a bad finding keeps training from starting."""
        ...


@runtime_checkable
class ShowsItself(Protocol):
    """A scorer with a picture of its own kind, by which its speed is measured."""

    def example(self) -> tuple[NDArray[np.uint8], PromptRecord]:
        """A picture [H, W, 3] and its record."""
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
