"""The messages between a server of scores and those who ask it: JSON, with pictures in base64."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.rewards.service.images import Format, encode, opened, pixels
from flowopd.rewards.service.limits import Limits
from flowopd.tasks.prompts import PromptRecord

PROTOCOL = 1
"""Counts up when an older client could misread a reply."""
LONGEST = 20_000
IMAGE = {"format": "base64-image", "contentEncoding": "base64"}


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Item(Message):
    """A picture and the record of its prompt."""

    image: Annotated[str, Field(min_length=1, json_schema_extra=dict(IMAGE))]
    """A PNG, JPEG or WebP file."""
    prompt: str = Field(max_length=LONGEST)
    task: str = Field("", max_length=200)
    tag: str = Field("", max_length=200)
    meta: dict[str, JsonValue] = Field(default_factory=dict)


class ScoreRequest(Message):
    items: list[Item] = Field(min_length=1)


class Score(Message):
    """What was read off one picture; a missing value is null and has its reason."""

    values: dict[str, float | None]
    reasons: dict[str, str] = Field(default_factory=dict)
    detail: dict[str, JsonValue] = Field(default_factory=dict)


class ScoreReply(Message):
    scores: list[Score]


class Metric(Message):
    name: str
    low: float | None = None
    high: float | None = None
    strata: bool = False
    scale: float = 1.0


class ModelsAndCost(Message):
    models: list[str] = Field(default_factory=list)
    licence: str = ""
    cost: str = ""


class LimitsReply(Message):
    body: int
    batch: int
    pixels: int
    queue: int


class AboutReply(Message):
    """The scorer behind the server, as it would describe itself here."""

    protocol: int
    name: str
    version: int
    metrics: list[Metric]
    tasks: list[str] | None = None
    grouped: bool = False
    identity: dict[str, JsonValue] = Field(default_factory=dict)
    """Its settings that change a number."""
    about: ModelsAndCost = Field(default_factory=ModelsAndCost)
    limits: LimitsReply

    @property
    def metric_infos(self) -> tuple[MetricInfo, ...]:
        return tuple(MetricInfo(**metric.model_dump()) for metric in self.metrics)


class Found(Message):
    what: str
    value: float | None = None
    expected: str
    good: bool


class CheckReply(Message):
    findings: list[Found]


class Health(Message):
    status: str


class Refusal(Message):
    """Why a request was refused, in a sentence."""

    error: str


def request_body(
    images: Sequence[NDArray[np.uint8]],
    records: Sequence[PromptRecord],
    form: Format = "png",
    quality: int = 95,
) -> bytes:
    """A ScoreRequest of pictures [H, W, 3] and their records, as JSON."""
    items = [
        {
            "image": base64.b64encode(encode(image, form, quality)).decode("ascii"),
            **asdict(record),
        }
        for image, record in zip(images, records, strict=True)
    ]
    try:
        return json.dumps({"items": items}, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise FlowOPDError(
            f"The prompts' records hold what JSON cannot say, and cannot be sent: {error}."
        ) from None


def read_request(body: bytes, limits: Limits) -> tuple[list[NDArray[np.uint8]], list[PromptRecord]]:
    """The pictures and records of a request; a FlowOPDError for what is wrong with it."""
    try:
        items = ScoreRequest.model_validate_json(body).items
    except ValidationError as error:
        raise FlowOPDError(sentences(error)) from None
    if len(items) > limits.batch:
        raise FlowOPDError(
            f"There are {len(items)} pictures; a request may have at most {limits.batch}."
        )
    images, left = [], limits.pixels
    for number, item in enumerate(items):
        try:
            image = opened(_bytes(item.image), left)
        except FlowOPDError as error:
            raise FlowOPDError(f"The image of items.{number} is wrong: {error}") from None
        left -= image.width * image.height
        images.append(image)
    pictures = []
    for number, image in enumerate(images):
        try:
            pictures.append(pixels(image))
        except FlowOPDError as error:
            raise FlowOPDError(f"The image of items.{number} is wrong: {error}") from None
    return pictures, [PromptRecord(one.prompt, one.task, one.tag, one.meta) for one in items]


def reply_body(scores: Sequence[Scores]) -> bytes:
    """A ScoreReply as JSON; floats are written so that the same float is read."""
    plain = [
        {"values": score.values, "reasons": score.reasons, "detail": jsonable(score.detail)}
        for score in scores
    ]
    return json.dumps({"scores": plain}, allow_nan=False).encode("ascii")


def read_reply(body: bytes) -> list[Scores]:
    try:
        found = ScoreReply.model_validate_json(body).scores
    except ValidationError as error:
        raise FlowOPDError(sentences(error)) from None
    return [Scores(score.values, score.reasons, score.detail) for score in found]


def about_reply(scorer: Any, identity: Mapping[str, Any], limits: Limits) -> AboutReply:
    about: About = getattr(scorer, "about", About())
    return AboutReply(
        protocol=PROTOCOL,
        name=scorer.name,
        version=scorer.version,
        metrics=[Metric(**asdict(metric)) for metric in scorer.metrics],
        tasks=None if scorer.tasks is None else sorted(scorer.tasks),
        grouped=scorer.grouped,
        identity=jsonable(identity),
        about=ModelsAndCost(**{**asdict(about), "models": list(about.models)}),
        limits=LimitsReply(**limits.model_dump(include=set(LimitsReply.model_fields))),
    )


def finding_reply(findings: Sequence[Finding]) -> CheckReply:
    return CheckReply(findings=[Found(**jsonable(asdict(finding))) for finding in findings])


def jsonable(value: Any) -> Any:
    """What JSON can hold of what a scorer gave: arrays as lists, what is no number as null."""
    if isinstance(value, Mapping):
        return {_text(str(key)): jsonable(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(one) for one in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    return _text(str(value))


def sentences(error: ValidationError) -> str:
    """What pydantic found, the first few things of it, without what was given."""
    found = [
        f"{'.'.join(str(key) for key in one['loc']) or 'The body'}: {one['msg']}."
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f" And {len(found) - 3} more." if len(found) > 3 else ""
    return _text(" ".join(found[:3]) + more)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FlowOPDError("it is not base64.") from None


def _text(text: str) -> str:
    """Text that can be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")
