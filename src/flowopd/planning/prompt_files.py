"""The prompts of a recipe; where a file is not here yet, ones that are made up."""

from collections.abc import Sequence

from flowopd.tasks.prompt_set import PromptSet, read_set
from flowopd.tasks.prompts import PromptRecord

MADE_UP = 1024


class Assumed:
    """What could not be looked up, and what it was taken for: sentences, each once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)


class PromptFiles:
    """Each file is read once."""

    def __init__(self, assumed: Assumed) -> None:
        self._assumed = assumed
        self._read: dict[tuple[PromptSet, int | None], list[PromptRecord]] = {}

    def of(self, sets: Sequence[PromptSet], limit: int | None = None) -> list[PromptRecord]:
        """The records of all sets, of each at most `limit`."""
        return [record for one in sets for record in self._records(one, limit)]

    def count(self, sets: Sequence[PromptSet], limit: int | None, images: int) -> int:
        """How many pictures the sets ask for, where a set says nothing `images` of each prompt."""
        return sum(
            len(self._records(one, limit)) * (one.images_per_prompt or images) for one in sets
        )

    def _records(self, one: PromptSet, limit: int | None) -> list[PromptRecord]:
        key = (one, limit)
        if key not in self._read:
            self._read[key] = read_set(one, limit) if one.path.exists() else self._made_up(one)
        return self._read[key]

    def _made_up(self, one: PromptSet) -> list[PromptRecord]:
        count = one.limit or MADE_UP
        self._assumed.add(
            f"The prompt file {one.path} is not here; it is taken for {count:,} different prompts."
        )
        return [PromptRecord(f"{one.path} {number}") for number in range(count)]
