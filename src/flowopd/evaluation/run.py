"""An evaluation: the base and adapters of it, under one protocol."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowopd.adapters import Adapters, Switch, adapter_warnings, check_adapters
from flowopd.errors import FlowOPDError
from flowopd.evaluation.drawing import Drawing, Place
from flowopd.evaluation.protocol import BASE, EvalConfig, Job, read_job
from flowopd.evaluation.results import Row, merge_rows, read_results, row_metrics, write_results
from flowopd.evaluation.score import Begin, Begun, Images, begin_scoring
from flowopd.evaluation.score_file import Line, ScoreFile, refuse_other_protocol
from flowopd.evaluation.table import markdown_table
from flowopd.files import check_writable, make_writable, slug, write_atomic
from flowopd.locks import locked
from flowopd.models import opened
from flowopd.policy.protocol import VelocityModel
from flowopd.policy.text_cache import through_cache
from flowopd.reporting.progress import progress
from flowopd.rewards.work import Jury
from flowopd.rewards.work.checking import check_jury
from flowopd.team import Alone, Team
from flowopd.versions import versions

HOUSEKEEPING = {"path", "transformer", "device", "gradient_checkpointing", "compile"}
"""The keys of a model that do not change what it draws, or are said otherwise."""
RESULTS, TABLE, SCORES, IMAGES = "results.json", "table.md", "scores", "images"
LOCK = ".evaluation.lock"


def places(job: Job, seed: int) -> list[Place]:
    """Every image of the protocol, each with its own seed.

    If prompts shared their initial noise, the luck of that draw would be in no interval.
    """
    pairs = [(index, k) for index, count in enumerate(job.counts) for k in range(count)]
    return [Place(index, k, seed + number) for number, (index, k) in enumerate(pairs)]


@dataclass(frozen=True)
class Plan:
    """An evaluation that has passed every check that needs no weights."""

    config: EvalConfig
    job: Job
    adapters: Adapters


def check_protocol(config: EvalConfig) -> Job:
    """Read the prompts and start the scorers, if the model knows them and each other."""
    config.model.check()
    if BASE in config.adapters:
        raise FlowOPDError(
            f"An adapter cannot be called {BASE!r}: that row is the model without adapters."
        )
    job = read_job(config)
    prompts = [record.prompt for record in job.records]
    config.model.check_pictures(prompts, config.height, config.width)
    return job


def prepare(config: EvalConfig, *, job: Job | None = None) -> Plan:
    """Refuse what cannot be evaluated. Reads no weights and writes nothing.

    `job` is what `check_protocol` gave for the same protocol, when several rows share it.
    """
    job = job or check_protocol(config)
    adapters = check_adapters(config.model, config.adapters)
    read_results(config.out / RESULTS, job.hash)
    for name in (BASE, *config.adapters):
        refuse_other_protocol(config.out / SCORES / f"{name}.jsonl", job.hash)
    check_writable(config.out)
    return Plan(config, job, adapters)


def evaluate(plan: Plan, *, base: bool = True, team: Team | None = None) -> list[Row]:
    """Generate, score and write the base's row (if wanted) and one for each adapter.

    All rows that the results file then has. The processes of a team draw together; the main one
    scores and writes, and the others have no rows.
    """
    config, job, team = plan.config, plan.job, team or Alone()
    if team.main:
        make_writable(config.out / SCORES)
    alone = locked(config.out / LOCK, f"The evaluation in {config.out}")
    scorers = zip(config.scorers, job.scorers, strict=True) if team.main else ()
    with alone if team.main else nullcontext(), Jury(scorers) as jury:
        if config.check_rewards:
            check_jury(jury, team)
        return _rows(plan, base=base, team=team, begin=jury.call)


def _rows(plan: Plan, *, base: bool, team: Team, begin: Begin) -> list[Row]:
    config, job = plan.config, plan.job
    rows: list[Row] = []
    with opened(config.model) as model:
        if team.main:
            rows = read_results(config.out / RESULTS, job.hash, model.fingerprint)
        switch = Switch(model, plan.adapters)
        prompts = [record.prompt for record in job.records]
        encode = through_cache(config.text_cache, model, prompts, team=team)
        drawing = Drawing(config, job, model, encode, team)
        for name in (*([None] if base else []), *plan.adapters.files):
            with switch.using(name):
                if not team.main:
                    drawing.help()
                    continue
                row = RowRun(plan, model, name, drawing, begin).finish()
            rows = merge_rows(rows, row)
            write_results(config.out / RESULTS, job.protocol, rows)
            write_atomic(config.out / TABLE, markdown_table(config.name, rows))
    return rows


class RowRun:
    """One row: the images of every prompt by the model as it is now, and their scores."""

    def __init__(
        self,
        plan: Plan,
        model: VelocityModel,
        adapter: str | None,
        drawing: Drawing,
        begin: Begin,
    ) -> None:
        self.drawing, self.begin = drawing, begin
        self.config, self.job, self.model = plan.config, plan.job, model
        self.name = adapter or BASE
        self.adapter = plan.adapters.record(adapter) if adapter else None
        files = plan.adapters.files[adapter] if adapter else None
        self.warnings = (
            adapter_warnings(files, guidance=plan.config.guidance, settings=model.settings)
            if files
            else []
        )
        if not plan.config.check_rewards:
            self.warnings.append("the scorers were not checked.")
        self.settings = plan.config.model.model_dump(mode="json", exclude=HOUSEKEEPING)
        known = [model.fingerprint, getattr(model, "text_key", ""), json.dumps(self.settings)]
        beside = plan.config.model.surroundings().values()
        parts = [*known, str(model.dtype), files.sha256 if files else "", *beside]
        self.file = ScoreFile(
            plan.config.out / SCORES / f"{self.name}.jsonl",
            protocol=plan.job.hash,
            source=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
            counts=plan.job.counts,
        )

    def finish(self) -> Row:
        """Score the prompts that are not scored yet, and sum the row up."""
        for warning in self.warnings:
            print(f"warning: {self.name}: {warning}", file=sys.stderr)
        if self.file.restarted:
            print(
                f"{self.file.path} was of other weights or settings of the model; started anew.",
                file=sys.stderr,
            )
        if self.config.save_images:
            folder = self.config.out / IMAGES / self.name
            self.file.forget(
                line for line in self.file.lines if not (folder / image_name(line)).exists()
            )
        done = self.file.done
        everything = places(self.job, self.config.seed)
        pending = [place for place in everything if place.prompt not in done]
        batches = self.drawing.draw(pending)
        if pending:
            self._draw_and_score(pending, batches)
        return self._row()

    def _draw_and_score(self, pending: Sequence[Place], batches: Iterator[Images]) -> None:
        """Some images are scored while the next are drawn; what was drawn is scored in any case."""
        waiting: list[tuple[Sequence[Place], Images, Begun]] = []

        def write() -> None:
            self.file.append(self._lines(*waiting[0]))
            del waiting[0]

        try:
            for drawn, images in self._by_prompt(pending, batches):
                waiting.append((drawn, images, self._begin(drawn, images)))
                if len(waiting) > 1:
                    write()
        finally:
            while waiting:
                write()

    def _by_prompt(
        self, pending: Sequence[Place], batches: Iterator[Images]
    ) -> Iterator[tuple[Sequence[Place], Images]]:
        """The images in order, as soon as all those of a prompt are there."""
        left, images = list(pending), list[Images]()
        with progress(self.name, len(pending)) as advance:
            for batch in batches:
                images.extend(batch)
                count = self._whole_prompts(left, len(images))
                if count:
                    yield left[:count], np.stack(images[:count])
                left, images = left[count:], images[count:]
                advance(len(batch))

    def _whole_prompts(self, drawn: Sequence[Place], count: int) -> int:
        """How many of the first ``count`` images belong to prompts that have all of theirs."""
        ends = (
            position + 1
            for position, place in enumerate(drawn[:count])
            if place.image == self.job.counts[place.prompt] - 1
        )
        return max(ends, default=0)

    def _begin(self, drawn: Sequence[Place], images: Images) -> Begun:
        return begin_scoring(
            self.job.scorers,
            images,
            [self.job.records[place.prompt] for place in drawn],
            [self.job.counts[place.prompt] for place in drawn],
            [place.prompt for place in drawn],
            begin=self.begin,
        )

    def _lines(self, drawn: Sequence[Place], images: Images, begun: Begun) -> list[Line]:
        records = [self.job.records[place.prompt] for place in drawn]
        lines: list[Line] = [
            {
                "prompt_index": place.prompt,
                "image_index": place.image,
                "seed": place.seed,
                "prompt": record.prompt,
                "task": record.task,
                "tag": record.tag,
                **entry,
            }
            for place, record, entry in zip(drawn, records, begun.result(), strict=True)
        ]
        if self.config.save_images:
            self._save_images(images, lines)
        return lines

    def _save_images(self, images: Images, lines: Sequence[Line]) -> None:
        folder = self.config.out / IMAGES / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for image, line in zip(images, lines, strict=True):
            Image.fromarray(image).save(folder / image_name(line))

    def _row(self) -> Row:
        row: dict[str, Any] = {
            "name": self.name,
            "metrics": row_metrics(self.job.scorers, self.file.lines),
            "images": len(self.file.lines),
            "model": {"name": self.model.name, "sha256": self.model.fingerprint, **self.settings},
            "precision": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "guidance": self.config.guidance,
            "scores": f"{SCORES}/{self.name}.jsonl",
            "versions": versions(),
        }
        if self.adapter:
            row["adapter"] = self.adapter
        if self.warnings:
            row["warnings"] = self.warnings
        return row


def image_name(line: Line) -> Path:
    """Unique in its folder, and tells the prompt."""
    number = f"{line['prompt_index']:05d}-{line['image_index']:02d}"
    return Path(f"{number}_seed{line['seed']}_{slug(line['prompt'])}.png")
