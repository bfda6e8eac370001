"""What a command needs of the processes that do it together."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Team(Protocol):
    """The processes that a launcher started: all come to the same places in the same order."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        ...

    def mine(self, items: Sequence[T]) -> list[T]:
        """What of the items is this process's to do."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...

    def leave(self) -> None:
        """The work is done; nothing that is shared comes after this."""
        ...


class Alone:
    """One process, which has nobody to wait for."""

    index, count, main = 0, 1, True

    def mine(self, items: Sequence[T]) -> list[T]:
        return list(items)

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def wait(self) -> None:
        """Everybody is here."""

    def leave(self) -> None:
        """Nobody is left behind."""
