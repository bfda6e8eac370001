"""How a call is cut into requests: whole groups, and no more than a server takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowopd.rewards.service.images import Format, most_bytes
from flowopd.rewards.service.wire import LimitsReply
from flowopd.rewards.work.calls import Unit
from flowopd.tasks.prompts import PromptRecord

ESCAPED = 12
"""Bytes that a character of a record takes in JSON at most."""
AROUND = 100
"""Bytes of a picture's item beside the picture and its record, and more."""


def together(some: Sequence[Unit], most: int) -> list[list[Unit]]:
    """The units in order, as many at a time as make `most` pictures, and one at least."""
    parts: list[list[Unit]] = []
    count = 0
    for unit in some:
        if not parts or count + len(unit) > most:
            parts.append([])
            count = 0
        parts[-1].append(unit)
        count += len(unit)
    return parts


@dataclass(frozen=True)
class Weight:
    """What a picture of a call weighs in a request."""

    pixels: int
    bytes: int

    @classmethod
    def of(cls, height: int, width: int, form: Format, records: Sequence[PromptRecord]) -> "Weight":
        record = max(len(repr(record)) for record in records)
        picture = most_bytes(height, width, form) * 4 // 3
        return cls(height * width, picture + ESCAPED * record + AROUND)

    def room(self, limits: LimitsReply) -> int:
        """How many such pictures a server takes in a request."""
        return min(limits.batch, limits.pixels // self.pixels, limits.body // self.bytes)
