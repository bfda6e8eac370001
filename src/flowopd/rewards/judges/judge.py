"""A scorer that shows a chat model a picture with a rubric, and reads the score in its reply."""

import io
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flowopd.errors import FlowOPDError
from flowopd.rewards.judges.chat import Answer, Endpoint, Question
from flowopd.rewards.judges.rubric import own_rubric, read_rubric
from flowopd.rewards.judges.settings import JudgeSettings
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores, UnavailableError
from flowopd.rewards.service.background import Background
from flowopd.tasks.prompts import PromptRecord

Pictures = NDArray[np.uint8]
RIGHT = "a red circle on a white background"
WRONG = "a crowded street in the rain at night"
EXCERPT = 120


class Judge:
    """Subclasses name themselves, their metric, and the rubric that comes with the package."""

    name: ClassVar[str]
    version = 1
    tasks: frozenset[str] | None = None
    grouped = False

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        if settings.rubric is None:
            self.rubric = own_rubric(self.name)
            self.version = self.rubric.version
        else:
            self.rubric = read_rubric(settings.rubric)
        rubric = self.rubric
        self.metrics = (MetricInfo(self.name, rubric.low, rubric.high, scale=rubric.scale),)
        self._background: Background | None = None
        self._endpoint: Endpoint | None = None

    @property
    def about(self) -> About:
        cost = "a chat server of its own, and a request for every picture"
        return About((self.settings.model,), "that of the model", cost)

    def load(self) -> None:
        """See that the endpoint is there and knows the model."""
        background, endpoint = self._ready()
        background.run(endpoint.check())

    def score(self, images: Pictures, records: Sequence[PromptRecord]) -> list[Scores]:
        background, endpoint = self._ready()
        questions = [
            Question(self.rubric.question(record.prompt), partial(self._shown, image))
            for image, record in zip(images, records, strict=True)
        ]
        answers = background.run(endpoint.ask(questions))
        scores = [self._read(answer) for answer in answers]
        self._keep(records, scores)
        return scores

    def self_check(self) -> list[Finding]:
        """The same picture with its own caption and with another's."""
        picture = np.stack([_red_circle()] * 2)
        right, wrong = (
            score.values[self.name]
            for score in self.score(picture, [PromptRecord(RIGHT), PromptRecord(WRONG)])
        )
        what = "the score of a caption that is right less that of a wrong one"
        if right is None or wrong is None:
            return [Finding(what, None, "two scores that can be read", False)]
        return [Finding(what, right - wrong, "above 0", right > wrong)]

    def example(self) -> tuple[Pictures, PromptRecord]:
        return _red_circle(), PromptRecord(RIGHT)

    def transient(self, error: Exception) -> Literal[False]:
        """All that was worth another try has had it."""
        return False

    def close(self) -> None:
        background, endpoint = self._background, self._endpoint
        self._background = self._endpoint = None
        if background is not None and endpoint is not None and background.alive:
            background.run(endpoint.close())
            background.close()

    def _ready(self) -> tuple[Background, Endpoint]:
        if self._background is None or self._endpoint is None or not self._background.alive:
            if find_spec("httpx") is None:
                raise UnavailableError(
                    f"The judge {self.name!r} needs the package 'httpx': "
                    "pip install 'flowopd[service]'."
                )
            self._background = Background(self.name)
            self._endpoint = self._background.run(_opened(self.name, self.settings))
        return self._background, self._endpoint

    def _shown(self, picture: Pictures) -> bytes:
        image, file = Image.fromarray(picture), io.BytesIO()
        if self.settings.size is not None:
            image = image.resize((self.settings.size,) * 2, Image.Resampling.BICUBIC)
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _read(self, answer: Answer) -> Scores:
        """The score in an answer; one that cannot be read is missing, and kept to be looked at."""
        if answer.text is None:
            return Scores({self.name: None}, {self.name: answer.trouble})
        detail: dict[str, Any] = {"reply": answer.text}
        try:
            if answer.trouble:
                raise FlowOPDError(answer.trouble)
            value = self.rubric.score(answer.text)
        except FlowOPDError as error:
            end = " ".join(answer.text.split())[-EXCERPT:]
            return Scores({self.name: None}, {self.name: f"{error}: ...{end}"}, detail)
        return Scores({self.name: value}, detail={**self.rubric.others(answer.text), **detail})

    def _keep(self, records: Sequence[PromptRecord], scores: Sequence[Scores]) -> None:
        """Add the replies to the file, if there is to be one."""
        if self.settings.replies is None:
            return
        lines = [
            json.dumps(
                {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "prompt": record.prompt,
                    "score": score.values[self.name],
                    "reason": score.reasons.get(self.name),
                    "reply": score.detail.get("reply"),
                }
            )
            for record, score in zip(records, scores, strict=True)
        ]
        try:
            self.settings.replies.parent.mkdir(parents=True, exist_ok=True)
            with self.settings.replies.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:
            print(f"warning: {self.name}: the replies are not kept: {error}.", file=sys.stderr)


async def _opened(name: str, settings: JudgeSettings) -> Endpoint:
    return Endpoint(name, settings)


def _red_circle(size: int = 512) -> Pictures:
    image = Image.new("RGB", (size, size), (255, 255, 255))
    ImageDraw.Draw(image).ellipse((size // 4,) * 2 + (size * 3 // 4,) * 2, (220, 20, 30))
    return np.asarray(image)
