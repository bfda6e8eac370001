"""The cold start by fine-tuning: pictures by each task's teacher, then flow matching (10)."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd.algorithms.flow_matching import flow_matching, noised
from flowopd.algorithms.settings import SFTConfig
from flowopd.errors import FlowOPDError
from flowopd.files import replacing, save_tensors
from flowopd.flow import NoiseSource, Sampler, forwards_of
from flowopd.tasks.batches import Batches, Sample
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.method import Batch, Context, Method, Piece, make_parts
from flowopd.training.methods.stored import store

POOL_SEED = 1 << 20
FILE = 16  # pictures


class SFT(Method):
    """The teachers' pictures are drawn beforehand into `pool/`, and found there again."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config.algorithm
        assert isinstance(config, SFTConfig)
        self.config = config
        self._latents: dict[str, Tensor] = {}
        self._records: dict[str, list[PromptRecord]] = {}
        start = time.monotonic()
        for task in context.config.tasks:
            self._fill(task)
        context.seconds += time.monotonic() - start

    def records(self) -> Mapping[str, Sequence[PromptRecord]]:
        return self._records

    def updates(self, batch: Batch) -> Iterator[Iterator[Piece]]:
        yield self._pieces(batch)

    def _pieces(self, batch: Batch) -> Iterator[Piece]:
        device = self.context.model.device
        for part in batch.parts:
            numbers = [sample.number for sample in part.samples]
            x0 = self._latents[part.task][numbers].to(device)
            noise = NoiseSource([sample.seed for sample in part.samples])
            logit = self.config.t_mean + self.config.t_std * noise.draw((1,), device)[:, 0]
            t, x1 = torch.sigmoid(logit), noise.draw(x0.shape[1:], device)
            velocity = self.context.velocities.student(part.cond, 1.0)(noised(x0, x1, t), t)
            loss = flow_matching(velocity, x0, x1)
            self.context.meter.add(f"task/{part.task}/flow_matching", loss.detach())
            yield Piece(part.task, loss.sum() / batch.size)

    def _fill(self, task: str) -> None:
        """Draw what is not there yet, each process its own files."""
        context, samples = self.context, self._pool(task)
        chunks = [samples[first : first + FILE] for first in range(0, len(samples), FILE)]
        files = [
            context.folder / "pool" / f"{task}-{n:05d}.safetensors" for n in range(len(chunks))
        ]
        pairs = list(zip(files, chunks, strict=True))
        own = context.ranks.mine(pairs)
        missing = [
            (file, chunk) for file, chunk in own if _read(file, self._origin(task, chunk)) is None
        ]
        there = sum(len(chunk) for _, chunk in own) - sum(len(chunk) for _, chunk in missing)
        each = context.config.rollout.steps * forwards_of(context.config.teacher_guidance(task))
        context.velocities.forwards += there * each  # of a run that was killed while it drew them
        drawn = self._drawn(task, [sample for _, chunk in missing for sample in chunk])
        for file, chunk in missing:
            latents = torch.stack([next(drawn) for _ in chunk])
            with replacing(file) as temporary:
                save_tensors({"latents": latents}, temporary, metadata=self._origin(task, chunk))
        context.ranks.wait()
        found = [_read(file, self._origin(task, chunk)) for file, chunk in pairs]
        if any(part is None for part in found):
            raise FlowOPDError(f"A file of {context.folder / 'pool'} was damaged; start again.")
        self._latents[task] = torch.cat([part for part in found if part is not None])
        self._records[task] = [sample.record for sample in samples]
        context.images += len(samples)

    def _pool(self, task: str) -> list[Sample]:
        """The pictures of a task that are learned, each by its prompt and noise."""
        source = Batches(
            {task: self.context.records[task]},
            {task: 1.0},
            prompts=self.config.images_per_task,
            seed=self.context.config.seed + POOL_SEED,
        )
        return source.draw()

    def _origin(self, task: str, samples: Sequence[Sample]) -> dict[str, str]:
        """What pictures depend on, to be written with them."""
        context = self.context
        teacher = context.roles.identity(context.roles.teachers[task])
        settings = [
            context.model.fingerprint,
            teacher,
            context.config.teacher_guidance(task),
            context.sigmas.tolist(),
        ]
        drawn = [[sample.record.prompt, sample.start_seed] for sample in samples]
        return {"origin": json.dumps([settings, drawn])}

    def _drawn(self, task: str, samples: Sequence[Sample]) -> Iterator[Tensor]:
        """The teacher's pictures by the ODE; they are to be learned, not explored."""
        context, size = self.context, self.context.config.batch.micro
        guidance = context.config.teacher_guidance(task)
        for first in range(0, len(samples), size):
            part = make_parts([samples[first : first + size]], context)[0]
            teacher = context.velocities.frozen(context.roles.teachers[task], part.cond, guidance)
            yield from store(self, part, teacher, set(), Sampler()).x0.cpu()


def _read(file: Path, origin: Mapping[str, str]) -> Tensor | None:
    """The latents of this origin, or None where the file is not (or not whole, or of another)."""
    try:
        with safe_open(file, framework="pt") as opened:
            if opened.metadata() != origin:
                return None
            latents: Tensor = opened.get_tensor("latents")
            return latents
    except (FileNotFoundError, SafetensorError, OSError):
        return None
