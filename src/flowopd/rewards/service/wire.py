"""The messages between a server of scores and those who ask it: JSON, with pictures in base64."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.rewards.service.images import Format, encode, opened, pixels
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.work.calls import Failed
from flowopd.tasks.prompts import PromptRecord

PROTOCOL = 2
"""Counts up when an older client could misread a reply."""
LONGEST = 20_000
"""Characters of a prompt."""
LARGEST_META = 64 * 1024
"""Characters of a record's meta, as JSON."""
PARTS = 4096
"""Values of a request's JSON, for each of the pictures that it may have."""
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
    """At most 64 KiB of JSON."""


class ScoreRequest(Message):
    items: list[Item] = Field(min_length=1)


class Score(Message):
    """What was read off one picture; a missing value is null and has its reason."""

    values: dict[str, float | None]
    reasons: dict[str, str] = Field(default_factory=dict)
    detail: dict[str, JsonValue] = Field(default_factory=dict)
    failed: bool = False
    """Whether the scorer failed, and did not just find no value."""


class ScoreReply(Message):
    scores: list[Score]
    instance: str
    """The server that answered; another one after a restart."""


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
    instance: str
    """Drawn when the server starts, so that a restart can be noticed."""
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


@dataclass(frozen=True)
class Reply:
    """The scores of a request, and which server they are from."""

    scores: list[Scores]
    instance: str


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
    items = [_item(number, one) for number, one in enumerate(_items(body, limits.batch))]
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


def _items(body: bytes, batch: int) -> list[Any]:
    """What a request has in its list, which is not looked at before its length is right.

    A value of JSON takes a hundred times the memory of the two bytes that it is written with, so
    that they are counted before any is read.
    """
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > PARTS * batch:
        raise FlowOPDError(
            f"The body has more than {PARTS * batch} values, {PARTS} for each picture that a "
            "request may have."
        )
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise FlowOPDError(f"Invalid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise FlowOPDError('The body should be an object, {"items": [...]}.')
    _check_keys("The body", data, ScoreRequest)
    items = data.get("items")
    if not isinstance(items, list):
        raise FlowOPDError("items: it is missing, or should be a list.")
    if not items:
        raise FlowOPDError("items: List should have at least 1 item.")
    if len(items) > batch:
        raise FlowOPDError(f"There are {len(items)} pictures; a request may have at most {batch}.")
    return items


def _item(number: int, data: Any) -> Item:
    """One of them; the first that is wrong is the only one that is spoken of."""
    if not isinstance(data, dict):
        raise FlowOPDError(f"items.{number}: Input should be an object.")
    _check_keys(f"items.{number}", data, Item)
    try:
        item = Item.model_validate(data)
    except ValidationError as error:
        raise FlowOPDError(sentences(error, f"items.{number}")) from None
    size = len(json.dumps(item.meta))
    if size > LARGEST_META:
        raise FlowOPDError(
            f"items.{number}.meta: it has {size} characters as JSON, and may have {LARGEST_META}."
        )
    return item


def _check_keys(where: str, data: dict[str, Any], model: type[Message]) -> None:
    unknown = data.keys() - model.model_fields
    if unknown:
        key = _text(repr(min(unknown)[:60]))
        raise FlowOPDError(f"{where}: the key {key} is not permitted.")


def reply_body(scores: Sequence[Scores], instance: str) -> bytes:
    """A ScoreReply as JSON; floats are written so that the same float is read."""
    plain = [
        {
            "values": score.values,
            "reasons": jsonable(score.reasons),
            "detail": jsonable(score.detail),
            "failed": isinstance(score, Failed),
        }
        for score in scores
    ]
    return json.dumps({"scores": plain, "instance": instance}, allow_nan=False).encode("ascii")


def read_reply(body: bytes) -> Reply:
    """What a server answered; scores of a scorer that failed are Failed."""
    try:
        found = ScoreReply.model_validate_json(body)
    except ValidationError as error:
        raise FlowOPDError(sentences(error)) from None
    return Reply([_scores(one) for one in found.scores], found.instance)


def _scores(score: Score) -> Scores:
    kind = Failed if score.failed else Scores
    return kind(score.values, score.reasons, score.detail)


def about_reply(
    scorer: Any, identity: Mapping[str, Any], limits: Limits, instance: str
) -> AboutReply:
    about: About = getattr(scorer, "about", About())
    return AboutReply(
        protocol=PROTOCOL,
        instance=instance,
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


def sentences(error: ValidationError, place: str = "") -> str:
    """What pydantic found, the first few things of it, without what was given."""
    found = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(key) for key in (place, *one["loc"]) if key != "")
        found.append(f"{where or 'The body'}: {one['msg']}.")
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
