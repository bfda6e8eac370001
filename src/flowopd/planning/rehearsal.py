"""A training run with tensors that have no numbers: the real code, and what it holds of memory.

Student, teachers, anchor, method, trainer and optimizer are those of a run. The model computes
shapes alone, rewards are made up, and the other processes are imagined.
"""

import json
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowopd.planning.attention import fused_attention
from flowopd.planning.experts import Experts
from flowopd.planning.full_student import ImaginedFullStudent, full_student, in_shares
from flowopd.planning.imagined import Followed, ImaginedRanks, ImaginedReward, ImaginedSFT
from flowopd.planning.memory import LiveMemory
from flowopd.planning.needs import Phase, Rehearsed
from flowopd.planning.outline import Outline, bytes_in, bytes_of
from flowopd.planning.replay import Replay
from flowopd.policy.bank import Role
from flowopd.policy.generate import generate
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.config import StudentConfig, TrainConfig
from flowopd.training.method import Batch, Context, Method, Piece, divide
from flowopd.training.methods import METHODS
from flowopd.training.run import TrainPlan, adapter_paths, make_context
from flowopd.training.trainer import Trainer

FEW, MORE = 1, 2
"""How many passes of each kind are rehearsed: what the others would add follows from these."""
ENDLESS = 1 << 40
Peaks = dict[str, float]


class Rehearsal:
    """One process of a run, on the meta device."""

    def __init__(
        self,
        config: TrainConfig,
        model: Outline,
        records: Mapping[str, Sequence[PromptRecord]],
        experts: Experts,
        *,
        devices: int,
        probed: int = 0,
    ) -> None:
        """The configuration's model is one that opens as an outline, and `model` is that; `probed`
        is the number of pictures of a probe."""
        self._config, self._model, self._devices = config, model, devices
        self._probed = min(probed, config.batch.micro)
        files = {path: experts.of(path) for path in adapter_paths(config)}
        quiet: dict[str, Any] = {"text_cache": None, "trackers": [], "updates": ENDLESS}
        self._full: ImaginedFullStudent | None = None
        if config.student.full:
            start = None if config.start is None else files[config.start]
            self._full = full_student(config.model, start, model, devices)
            quiet |= {"start": None, "student": StudentConfig(rank=1)}
        self._plan = TrainPlan(
            config=config.model_copy(update=quiet),
            records=records,
            reward=ImaginedReward(),
            probe=None,
            files=files,
        )
        self._ranks = ImaginedRanks(devices)
        self._memory = LiveMemory()

    def run(self) -> Rehearsed:
        with self._memory, fused_attention(getattr(self._config.model, "attention_backend", None)):
            found = self._run()
        shared = self._full is not None and self._devices > 1
        return in_shares(found, self._full, self._devices) if self._full and shared else found

    def _run(self) -> Rehearsed:
        memory = self._memory
        context, cached = self._opened()
        self._replay(context)
        method = self._method(context)
        networks = bytes_of(*(one.transformer for one in context.roles.networks.values()))
        student = bytes_in(one for _, one in context.bank.trainable_parameters())
        experts, drawn = memory.live - student - networks, memory.live
        if len(context.bank.adapters) == 1:  # what is left over is rounding
            student, experts = student + experts, 0
        trainer = Trainer(context, method, None, recipe="")
        averages = memory.live - drawn
        gradients, optimizer = self._first_step(trainer)
        batches = self._batches(trainer, method)
        held = memory.live
        division = divide(batches[0].everyone, context)
        peaks = self._updates(trainer, batches, division.most)
        self._probe(trainer, context)
        return Rehearsed(
            division=division,
            parameters=sum(parameter.numel() for parameter in trainer.parameters),
            student=bytes_of(self._full.transformer) if self._full else student,
            experts=experts,
            networks=networks,
            hosted=0 if context.roles.visitors is None else _hosted(context),
            away=self._away(context),
            gradients=gradients,
            optimizer=optimizer,
            averages=averages,
            embeddings=held - drawn - averages - gradients - optimizer,
            peaks=self._above(held, peaks) | cached,
        )

    def _method(self, context: Context) -> Method:
        name = self._config.algorithm.name
        return ImaginedSFT(context) if name == "sft" else METHODS[name](context)

    def _opened(self) -> tuple[Context, dict[Phase, int]]:
        """With what the text encoders need where prompts are encoded before anything else."""
        memory = self._memory
        Followed(self._model, memory)
        context = make_context(self._plan, self._model, self._ranks, Path())
        if self._full is not None:
            context.roles.student = self._full
        if self._config.text_cache is None:
            return context, {}
        before = memory.live
        self._model.encode_prompts([""])
        return context, {Phase.ENCODE: memory.peaks[Phase.ENCODE] - before}

    def _above(self, held: int, updates: Peaks) -> dict[Phase, int]:
        """The peaks of the whole run, above what is held."""
        most = {
            phase: max(peak, updates.get(phase, 0)) for phase, peak in self._memory.peaks.items()
        }
        return {Phase(p): max(0, round(peak - held)) for p, peak in most.items() if p}

    def _replay(self, context: Context) -> None:
        """Let each network compute every kind of call once."""
        bank, roles = context.bank, context.roles
        trained = [parameter for _, parameter in roles.student.parameters()]
        settings = {
            name: json.dumps([info.config.to_config(), self._folded(info.role)], sort_keys=True)
            for name, info in bank.adapters.items()
        }

        def active() -> Hashable:
            name = bank.active
            return None if name is None else settings.get(name, name)

        def begin_training() -> None:
            if self._memory.phase == Phase.DRAW:
                self._memory.phase = Phase.TRAIN

        Replay(context.model.transformer, self._memory, active, trained, begin_training)
        if self._full is not None:
            first = trained[0]
            Replay(
                self._full.transformer,
                self._memory,
                lambda: first.grad is None,  # gradients are large here
                trained,
                begin_training,
            )
        for network in roles.networks.values():
            Replay(network.transformer, self._memory, lambda: None)

    def _folded(self, role: Role) -> bool:
        return self._config.teachers.merged and role is not Role.STUDENT

    def _first_step(self, trainer: Trainer) -> tuple[int, int]:
        """Gradients and the optimizer's state, which are there from the second update on."""
        memory, before = self._memory, self._memory.live
        trainer.zero_gradients()
        gradients = memory.live - before
        for group in trainer.optimizer.param_groups:
            group["foreach"] = True  # as on a GPU
        trainer.optimizer.step()
        optimizer = memory.live - before - gradients
        with memory.during(Phase.STEP), memory.watch() as watch:
            trainer.optimizer.step()

        def step() -> None:
            memory.reach(watch.above)

        trainer.optimizer.step = step  # type: ignore[assignment, method-assign]
        return gradients, optimizer

    def _batches(self, trainer: Trainer, method: Method) -> list[Batch]:
        """One; of tasks that take turns, one for each."""
        alternating = self._config.batch.mixing == "alternating"
        count = len(self._config.tasks) if alternating else 1
        return [method.batch(trainer.batches.draw()) for _ in range(count)]

    def _updates(self, trainer: Trainer, batches: Sequence[Batch], samples: int) -> Peaks:
        """The peaks of an update of so many samples, found from those of updates of few."""
        found: Peaks = {}
        for batch in batches:
            few, more = (_cut(batch, each) for each in (FEW, MORE))
            low, high = (self._update(trainer, one) for one in (few, more))
            added = len(more.samples) - len(few.samples)
            left = samples - len(more.samples)
            for phase, peak in high.items():
                slope = (peak - low.get(phase, peak)) / added if added else 0.0
                found[phase] = max(found.get(phase, 0), peak + max(0.0, slope) * left)
        return found

    def _update(self, trainer: Trainer, batch: Batch) -> Peaks:
        """The peaks of the updates that a batch serves."""
        memory, context = self._memory, trainer.context
        kept, memory.peaks = memory.peaks, {}
        updates = trainer.method.updates(batch)
        memory.phase = Phase.DRAW
        while (pieces := next(updates, None)) is not None:
            trainer.make_update(self._followed(pieces))
            context.meter.take(self._ranks)
            memory.phase = Phase.DRAW
        memory.phase = ""
        found: Peaks = dict(memory.peaks)
        memory.peaks = {p: max(kept.get(p, 0), memory.peaks.get(p, 0)) for p in kept | memory.peaks}
        return found

    def _followed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """What comes before a network is asked for a gradient belongs to the rollout."""
        memory = self._memory
        memory.phase = Phase.DRAW
        for piece in pieces:
            memory.phase = Phase.TRAIN
            yield piece
            del piece
            memory.phase = Phase.DRAW
        memory.phase = Phase.STEP

    @torch.no_grad()
    def _probe(self, trainer: Trainer, context: Context) -> None:
        probe, memory = self._config.probe, self._memory
        if probe is None:
            return
        size = self._probed
        prompts, seeds = [str(number) for number in range(size)], list(range(size))
        with memory.during(Phase.PROBE), trainer.averaged(), context.roles.student.using():
            pictures = generate(
                context.model,
                prompts,
                seeds,
                probe.sampling,
                batch_size=size,
                encode=lambda wanted: context.velocities.embed(list(wanted)),
            )
            deque(pictures, maxlen=0)

    def _away(self, context: Context) -> int:
        """The whole networks for which there is no place on the device at the same time."""
        visitors, networks = context.roles.visitors, context.roles.networks
        if visitors is None:
            return 0
        sizes = sorted(bytes_of(network.transformer) for network in networks.values())
        return sum(sizes[: max(0, len(sizes) - visitors.places)])


def _hosted(context: Context) -> int:
    """Whole networks in pinned memory, whose allocator gives out powers of two."""
    tensors = [
        one for network in context.roles.networks.values() for one in network.tensors.values()
    ]
    return sum(1 << (tensor.nbytes - 1).bit_length() for tensor in tensors if tensor.nbytes)


def _cut(batch: Batch, each: int) -> Batch:
    """The batch with so many passes of every kind (a task, and a number of samples).

    The samples of a task become one group: what is left of theirs might have no spread.
    """
    seen: Counter[tuple[str, int]] = Counter()
    parts, start = [], 0
    for part in batch.parts:
        kind = (part.task, len(part))
        seen[kind] += 1
        if seen[kind] <= each:
            group = batch.tasks.index(part.task)
            samples = [replace(sample, group=group) for sample in part.samples]
            places = torch.arange(start, start + len(part))
            parts.append(replace(part, samples=samples, places=places))
            start += len(part)
    return replace(batch, parts=parts)
