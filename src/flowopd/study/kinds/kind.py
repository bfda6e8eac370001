"""What a kind of stage is, and what all of them share."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flowopd.config import build
from flowopd.study.config import Study
from flowopd.study.identity import Scorers


class Work(NamedTuple):
    """Pictures to draw, and samples through the network forwards."""

    images: int = 0
    forwards: int = 0


class Made(NamedTuple):
    """What a stage took."""

    images: int
    forwards: int
    seconds: float


class Kind(Protocol):
    """How stages of one kind are checked and run; ``config`` is what ``read`` gave."""

    outputs: tuple[str, ...]
    """Patterns of the files, below the stage's folder, that others use."""
    everywhere: bool
    """Whether every process of a distributed run takes part; otherwise the main one does it."""

    def read(self, data: Mapping[str, Any], study: Study, name: str) -> Any:
        """The settings of the stage, each checked on its own."""

    def check(self, config: Any, pending: Collection[Path]) -> None:
        """Refuse what cannot be run; adapters at ``pending`` paths are still to be made."""

    def covers(self, config: Any, scorers: Scorers) -> Any:
        """Plain data and paths: what the stage's outputs depend on."""

    def endless(self, config: Any, covers: Any) -> Any | None:
        """What ``covers`` gave without the length; None where a longer run is another one."""

    def record(self, config: Any) -> dict[str, Any]:
        """The settings for stage.json."""

    def estimate(self, config: Any) -> Work: ...

    def run(self, config: Any, folder: Path) -> Made:
        """Do it, or go on where it was stopped."""


def build_stage(cls: Any, data: Mapping[str, Any], study: Study, prefix: str) -> Any:
    """``cls`` from a stage's data; paths are relative to the study, errors name its file."""
    return build(
        cls, dict(data), prefix=prefix, where=str(study.source), context={"folder": study.folder}
    )
