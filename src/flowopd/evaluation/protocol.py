"""The protocol of an evaluation: everything that its numbers depend on but the model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from flowopd.config import Seed
from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.models import ModelField, model_keys
from flowopd.policy.generate import SamplingConfig
from flowopd.rewards.scorer import Scorer, applies, check_record
from flowopd.rewards.settings import ScorerSpec, by_name
from flowopd.tasks.prompt_set import PromptSet, read_set
from flowopd.tasks.prompts import PromptRecord

BASE = "base"
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class EvalConfig(SamplingConfig):
    """A protocol file, with what the command line adds to it: which model, where to."""

    shorthands = {"model": model_keys, "scorers.*": by_name}  # noqa: RUF012

    name: str = Field(min_length=1)
    prompts: list[PromptSet] = Field(min_length=1)
    scorers: list[ScorerSpec] = Field(min_length=1)
    images_per_prompt: int = Field(1, ge=1)
    seed: Seed = 0
    limit: int | None = Field(None, ge=1)
    """At most so many prompts of each set."""
    batch_size: int = Field(16, ge=1)
    save_images: bool = False
    check_rewards: bool = True
    """Whether the scorers check themselves before they are used."""
    model: ModelField
    adapters: dict[Name, Path] = Field(default_factory=dict)
    text_cache: Path | None = None
    """A folder for prompt embeddings, with which the text encoders leave the memory."""
    out: Path


@dataclass(frozen=True)
class Job:
    """The prompts, scorers and identity of an evaluation, ready before any weight is loaded."""

    records: list[PromptRecord]
    counts: list[int]
    """How many images each record has."""
    scorers: list[Scorer]
    protocol: dict[str, Any]

    @property
    def hash(self) -> str:
        """Tells one protocol from another; its name and the prompt files' paths do not count."""
        return str(self.protocol["hash"])


def read_job(config: EvalConfig) -> Job:
    """Read the prompt files and start the scorers."""
    sets = [read_set(prompts, config.limit) for prompts in config.prompts]
    records = [record for found in sets for record in found]
    counts = [
        prompts.images_per_prompt or config.images_per_prompt
        for prompts, found in zip(config.prompts, sets, strict=True)
        for _ in found
    ]
    scorers: list[Scorer] = [spec.load() for spec in config.scorers]
    job = Job(records, counts, scorers, _describe(config, sets, scorers))
    check_scorers(config.scorers, job)
    return job


def reads(scorer: Scorer, record: PromptRecord, count: int) -> bool:
    """Whether the scorer scores a record that has ``count`` images."""
    return applies(scorer, record) and (count > 1 or not scorer.grouped)


def check_scorers(specs: Sequence[ScorerSpec], job: Job) -> None:
    """Refuse scorers that give the same metric, or cannot read the prompts."""
    owners: dict[str, str] = {}
    for name, scorer in zip([spec.name for spec in specs], job.scorers, strict=True):
        for metric in scorer.metrics:
            if metric.name in owners:
                raise FlowOPDError(
                    f"The scorers {owners[metric.name]!r} and {name!r} both give the metric "
                    f"{metric.name!r}; keep one of them."
                )
            owners[metric.name] = name
        for record in job.records:
            if applies(scorer, record):
                check_record(name, scorer, record)
        places = list(zip(job.records, job.counts, strict=True))
        if any(reads(scorer, record, count) for record, count in places):
            continue
        if any(applies(scorer, record) for record in job.records):
            raise FlowOPDError(
                f"The scorer {name!r} compares the images of a prompt, and no prompt that it reads "
                "has more than one; set images_per_prompt to 2 or more."
            )
        found = ", ".join(sorted({repr(record.task) for record in job.records}))
        wanted = ", ".join(sorted(repr(task) for task in scorer.tasks or ()))
        raise FlowOPDError(
            f"The scorer {name!r} has nothing to score: it reads the tasks {wanted}, and the "
            f"prompts are of {found}."
        )


def _scorer_identity(spec: ScorerSpec, scorer: Scorer) -> dict[str, Any]:
    """A plug-in by its version, a file by its content, and both by the settings that count."""
    settings = spec.identity()
    own = {"settings": settings} if settings else {}
    if spec.file is not None:
        return {"name": spec.title, "sha256": sha256(spec.file), **own}
    return {"name": spec.name, "version": scorer.version, **own}


def _describe(
    config: EvalConfig, sets: Sequence[Sequence[PromptRecord]], scorers: Sequence[Scorer]
) -> dict[str, Any]:
    prompts = [
        {
            "path": prompts.path.name,
            "task": prompts.task,
            "count": len(records),
            "images_per_prompt": prompts.images_per_prompt or config.images_per_prompt,
            "sha256": _digest([asdict(record) for record in records]),
        }
        for prompts, records in zip(config.prompts, sets, strict=True)
    ]
    sampling = {key: getattr(config, key) for key in SamplingConfig.model_fields}
    numbers: dict[str, Any] = {
        "seed": config.seed,
        "scorers": [
            _scorer_identity(spec, scorer)
            for spec, scorer in zip(config.scorers, scorers, strict=True)
        ],
        **sampling,
    }
    sets_identity = [[entry["sha256"], entry["images_per_prompt"]] for entry in prompts]
    identity = _digest([numbers, sets_identity])
    return {"name": config.name, "hash": identity, "prompts": prompts, **numbers}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
