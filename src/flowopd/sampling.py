"""Pictures of prompts in a folder, with a contact sheet and a record of how they were made."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from PIL import Image
from pydantic import AfterValidator, Field

from flowopd.adapters import Adapters, Switch, adapter_warnings, check_adapters
from flowopd.config import Seed
from flowopd.errors import FlowOPDError
from flowopd.files import check_writable, make_writable, slug, write_atomic
from flowopd.models import ModelField, model_keys, opened
from flowopd.policy.generate import SamplingConfig, generate
from flowopd.policy.protocol import VelocityModel
from flowopd.policy.text_cache import through_cache
from flowopd.reporting.contact_sheet import contact_sheet
from flowopd.reporting.progress import progress
from flowopd.tasks.prompts import read_prompts
from flowopd.versions import versions

SHEET, RECORD = "contact_sheet.png", "sample.json"
ON_SHEET = 144
WIDEST = 12
ADAPTER = "adapter"


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("it should be a text that is not blank")
    return prompt


class SampleConfig(SamplingConfig):
    """What to draw, with which model, where to."""

    shorthands = {"model": model_keys}  # noqa: RUF012

    model: ModelField
    prompts: list[Annotated[str, AfterValidator(_not_blank)]] = Field(default_factory=list)
    prompt_file: Path | None = None
    out: Path
    seed: Seed = 0
    images_per_prompt: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    adapter: Path | None = None
    text_cache: Path | None = None
    """A folder for prompt embeddings, with which the text encoders leave the memory."""


@dataclass(frozen=True)
class Plan:
    """A configuration that has passed every check that needs no weights."""

    config: SampleConfig
    prompts: list[str]
    adapters: Adapters


class Picture(NamedTuple):
    """One picture: image ``seed`` - the first seed of its prompt."""

    file: str
    prompt: str
    seed: int


class Drawn(NamedTuple):
    """The pictures and the sheet that were written."""

    pictures: list[Picture]
    sheet: Path


def prepare(config: SampleConfig) -> Plan:
    """Refuse what cannot be drawn. Reads no weights and writes nothing."""
    config.model.check()
    prompts = list(config.prompts)
    if config.prompt_file is not None:
        prompts += [record.prompt for record in read_prompts(config.prompt_file)]
    if not prompts:
        raise FlowOPDError("There is no prompt to draw; give --prompt TEXT or --prompts FILE.")
    config.model.check_pictures(prompts, config.height, config.width)
    paths = {} if config.adapter is None else {ADAPTER: config.adapter}
    adapters = check_adapters(config.model, paths)
    check_writable(config.out)
    return Plan(config, prompts, adapters)


def run(plan: Plan) -> Drawn:
    """Draw every picture and write it as soon as it is there, then the sheet and the record."""
    config = plan.config
    make_writable(config.out)
    pictures = _pictures(plan)
    with opened(config.model) as model:
        for files in plan.adapters.files.values():
            warnings = adapter_warnings(files, guidance=config.guidance, settings=model.settings)
            for warning in warnings:
                print(f"warning: {warning}", file=sys.stderr)
        switch = Switch(model, plan.adapters)
        with switch.using(ADAPTER if plan.adapters.files else None):
            for picture, image in zip(pictures, _images(plan, model, pictures), strict=True):
                image.save(config.out / picture.file)
    _write_sheet(plan, pictures)
    _write_record(plan, model, pictures)
    return Drawn(pictures, config.out / SHEET)


def _pictures(plan: Plan) -> list[Picture]:
    config = plan.config
    places = [(prompt, k) for prompt in plan.prompts for k in range(config.images_per_prompt)]
    return [
        Picture(f"{index:05d}_seed{config.seed + k}_{slug(prompt)}.png", prompt, config.seed + k)
        for index, (prompt, k) in enumerate(places)
    ]


def _images(plan: Plan, model: VelocityModel, pictures: list[Picture]) -> Iterator[Image.Image]:
    prompts = [picture.prompt for picture in pictures]
    seeds = [picture.seed for picture in pictures]
    encode = through_cache(plan.config.text_cache, model, plan.prompts)
    with progress("drawing", len(pictures)) as advance:
        for batch in generate(
            model,
            prompts,
            seeds,
            plan.config,
            batch_size=plan.config.batch_size,
            encode=encode,
            on_batch=advance,
        ):
            yield from map(Image.fromarray, batch)


def _write_sheet(plan: Plan, pictures: list[Picture]) -> None:
    folder = plan.config.out
    shown = list(islice(pictures, ON_SHEET))
    if len(shown) < len(pictures):
        text = f"{SHEET} shows the first {ON_SHEET} of {len(pictures)} pictures."
        print(text, file=sys.stderr)
    images = []
    for picture in shown:
        with Image.open(folder / picture.file) as image:
            images.append(image.convert("RGB"))
    captions = [picture.prompt for picture in shown]
    columns = _columns(len(shown), plan.config.images_per_prompt)
    contact_sheet(images, captions, columns=columns).save(folder / SHEET)


def _columns(count: int, images_per_prompt: int) -> int:
    """A grid that is about square, and has the pictures of a prompt in one line."""
    together = images_per_prompt if images_per_prompt <= WIDEST else 1
    return together * max(1, round(sqrt(count) / together))


def _write_record(plan: Plan, model: VelocityModel, pictures: list[Picture]) -> None:
    record: dict[str, Any] = {
        "config": plan.config.model_dump(mode="json"),
        "model": {"name": model.name, "sha256": model.fingerprint},
        "adapter": plan.adapters.record(ADAPTER) if plan.adapters.files else None,
        "images": [picture._asdict() for picture in pictures],
        "versions": versions(),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_atomic(plan.config.out / RECORD, text + "\n")
