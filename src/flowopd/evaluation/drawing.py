"""The images of an evaluation, drawn by all processes of a team, a batch each in turn.

Who draws a batch changes nothing in it: its images and their seeds are those of one process.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flowopd.evaluation.protocol import EvalConfig, Job
from flowopd.evaluation.score import Images
from flowopd.policy.generate import Encode, generate
from flowopd.policy.protocol import VelocityModel
from flowopd.team import Team


class Place(NamedTuple):
    """One image of the protocol: which prompt's, which of that prompt's, from which seed."""

    prompt: int
    image: int
    seed: int


class Drawing:
    """The model as it is now, in every process."""

    def __init__(
        self, config: EvalConfig, job: Job, model: VelocityModel, encode: Encode, team: Team
    ) -> None:
        self._config, self._job, self._model = config, job, model
        self._encode, self._team = encode, team

    def draw(self, pending: Sequence[Place]) -> Iterator[Images]:
        """What the main process wants drawn, batch by batch in order; all processes come here."""
        return self._collected(self._team.collect(pending)[0])

    def help(self) -> None:
        """For the other processes."""
        for _ in self.draw([]):
            pass

    def _collected(self, pending: Sequence[Place]) -> Iterator[Images]:
        size, team = self._config.batch_size, self._team
        batches = [pending[first : first + size] for first in range(0, len(pending), size)]
        own = self._drawn([place for batch in team.mine(batches) for place in batch])
        for _ in range(0, len(batches), team.count):
            yield from (images for images in team.collect(next(own, None)) if images is not None)

    def _drawn(self, places: Sequence[Place]) -> Iterator[Images]:
        if not places:
            return
        yield from generate(
            self._model,
            [self._job.records[place.prompt].prompt for place in places],
            [place.seed for place in places],
            self._config,
            batch_size=self._config.batch_size,
            encode=self._encode,
        )
