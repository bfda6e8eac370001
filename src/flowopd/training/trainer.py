"""The trainer: the same few lines for every algorithm."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.policy.ema import EMA
from flowopd.reporting.progress import progress
from flowopd.rewards.work.calls import call_now
from flowopd.tasks.batches import Batches
from flowopd.training.checkpoint import Checkpoints, Saved
from flowopd.training.config import TrainConfig
from flowopd.training.faults import Faults
from flowopd.training.gradients import TaskGradients, interference
from flowopd.training.interrupt import Interrupted, asked_to_end
from flowopd.training.method import Context, Method, Piece, divide
from flowopd.training.probe import Probe
from flowopd.training.record import JsonLines, Trackers, rounded
from flowopd.training.sharding import spread, whole

MOST_BROKEN = 3


class Trainer:
    """Trains the student until the configuration's number of updates is reached."""

    def __init__(
        self, context: Context, method: Method, probe: Probe | None, *, recipe: str
    ) -> None:
        config = context.config
        self.context, self.method, self.probe = context, method, probe
        self.batches = make_batches(config, method)
        self.student = context.roles.student
        named = self.student.parameters()
        self.parameters = [parameter for _, parameter in named]
        self.faults = Faults(named, context.ranks)
        self.optimizer = make_optimizer(config, self.parameters)
        self.ema = EMA(named, config.ema.decay, config.ema.every) if config.ema else None
        self.checkpoints = Checkpoints(
            context.folder / "checkpoints", recipe=recipe, keep=config.checkpoint.keep
        )
        self.forwards = 0
        """Samples that went through the network, of all processes, at the last update."""
        self.broken = 0
        """Updates in a row that were skipped because a number was not finite."""

    def run(self) -> None:
        """Go on from the last checkpoint to the end; on a signal, save and raise Interrupted."""
        context, config = self.context, self.context.config
        saved = self.checkpoints.latest()
        self._agree(saved)  # before one of them writes the first checkpoint
        if saved is not None:
            self._restore(saved)
        # What was drawn before the first update, as SFT's pictures, is in no line of the log.
        self.forwards = sum(context.ranks.collect(context.velocities.forwards))
        if context.ranks.main:
            self._say_division()
            self.log = self._lines("log.jsonl", including=True)
            self.probes = self._lines("probe.jsonl", including=saved is not None)
        trackers = config.trackers if context.ranks.main else []
        self.trackers = Trackers(trackers, context.folder, config.model_dump(mode="json"))
        with contextlib.closing(self.trackers):
            if saved is None:
                self._probe()
                self._save()
            self._rounds()
            self._save()

    def _agree(self, saved: Saved | None) -> None:
        """All processes go on from the same update."""
        found = self.context.ranks.collect(None if saved is None else saved.record["update"])
        if len(set(found)) > 1:
            updates = ", ".join("none" if update is None else str(update) for update in found)
            raise FlowOPDError(
                f"The processes found different checkpoints in {self.checkpoints.folder} (of the "
                f"updates {updates}): it has to be one folder that all of them can read."
            )

    def _say_division(self) -> None:
        """By the first batch, drawn once more."""
        context = self.context
        division = divide(make_batches(context.config, self.method).draw(), context)
        on_host = context.model.device.type == "cpu"
        unit = ("process", "processes") if on_host else ("device", "devices")
        print(division.sentence(unit), file=sys.stderr)

    def _rounds(self) -> None:
        context, config = self.context, self.context.config
        with asked_to_end() as asked, progress("training", config.updates, "updates") as advance:
            advance(context.update)
            while context.update < config.updates:
                before = context.update
                self._round()
                advance(context.update - before)
                ended = context.ranks.any(bool(asked))
                if ended or self._due(config.checkpoint.every, before):
                    self._save()
                if ended:
                    raise Interrupted(
                        f"ended by {asked.by or 'another process'} after update {context.update} "
                        f"of {config.updates}; everything is saved in {context.folder}, and the "
                        "same command goes on from there."
                    )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the student has its averages, where there are any."""
        with contextlib.nullcontext() if self.ema is None else self.ema.swapped():
            yield

    def _round(self) -> None:
        """One batch, and the updates that it serves."""
        context = self.context
        start, before = time.monotonic(), context.update
        batch = self.method.batch(self.batches.draw())
        for pieces in self.method.updates(batch):
            self.make_update(pieces)
            context.seconds += time.monotonic() - start
            self._log()
            start = time.monotonic()
        context.round += 1
        self.method.after_round()
        every = context.config.probe.every if context.config.probe else 0
        if every and (self._due(every, before) or context.update == context.config.updates):
            self._probe()

    def make_update(self, pieces: Iterator[Piece]) -> None:
        """One step of the optimizer by the gradients of all pieces, in all processes."""
        context, config = self.context, self.context.config
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        every = config.interference_every
        tasks = TaskGradients(self.parameters) if every and context.update % every == 0 else None
        self.faults.begin(watch=self.broken > 0)
        for piece in pieces:
            if piece.loss.requires_grad:
                piece.loss.backward()
            self.faults.after(piece)
            if tasks is not None:
                tasks.after(piece.task)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            gradients = self.zero_gradients()
        loss = self.faults.loss()
        self.student.add_up(gradients, loss, context.ranks)
        if tasks is not None:
            for name, cosine in interference(tasks, list(config.tasks), context.ranks).items():
                context.meter.add(f"interference/{name}", cosine)
        self._step(torch.nn.utils.get_total_norm(gradients), loss)
        context.update += 1
        if self.ema is not None:
            self.ema.update(context.update)

    def _step(self, norm: Tensor, loss: Tensor) -> None:
        """The optimizer's step, unless a number is not finite; both are those of all processes."""
        numbers = torch.stack([whole(norm), loss[0]]).tolist()
        self._last = {"grad_norm": numbers[0], "loss": numbers[1]}
        if all(map(math.isfinite, numbers)):
            self.broken = 0
            most = self.context.config.optimizer.clip_norm
            torch.nn.utils.clip_grads_with_norm_(self.parameters, most, norm)
            self.optimizer.step()
            return
        self.broken += 1
        self.context.meter.add("skipped", 1.0)
        found = self.faults.found()
        number = self.context.update + 1
        if self.broken == MOST_BROKEN:
            raise FlowOPDError(
                f"{MOST_BROKEN} updates in a row (the last is {number}) had a number that is not "
                f"finite: {found}. The run ends; its checkpoints are from before. A smaller "
                "optimizer.lr is worth trying."
            )
        if self.context.ranks.main:
            print(f"warning: update {number} skipped: {found} is not finite.", file=sys.stderr)

    def zero_gradients(self) -> list[Tensor]:
        """A process without pieces takes part in the sum all the same."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters if p.grad is not None]

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.context.config, self.context.update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _log(self) -> None:
        context = self.context
        values = context.meter.take(context.ranks)
        self.forwards = sum(context.ranks.collect(context.velocities.forwards))
        divergences = {
            task: values[f"task/{task}/divergence"]
            for task in context.config.tasks
            if f"task/{task}/divergence" in values
        }
        self.batches.observe(divergences)
        if context.config.batch.shares == "adaptive":
            shares = self.batches.shares()
            values |= {f"task/{task}/share": share for task, share in shares.items()}
        counts = {
            "update": context.update,
            "images": context.images,
            "forwards": self.forwards,
            "seconds": round(context.seconds, 3),
        }
        numbers = rounded(
            {
                "loss": self._last["loss"],
                "lr": learning_rate(context.config, context.update - 1),
                "grad_norm": self._last["grad_norm"],
                **values,
            }
        )
        missing = context.missing.take()
        if context.ranks.main:
            self.log.add(counts | numbers | ({"missing": missing} if missing else {}))
            self.trackers.log(counts | numbers, context.update)

    def _probe(self) -> None:
        """By the main process alone, unless the student is in shares."""
        context = self.context
        if self.probe is None or not (context.ranks.main or self.student.shared):
            return
        with torch.no_grad(), self.averaged(), self.student.using():
            found = self._take()
        if not context.ranks.main:
            return
        line = {
            "update": context.update,
            "images": context.images,
            "forwards": self.forwards,
            "seconds": round(context.seconds, 3),
            **found,
        }
        self.probes.add(line)
        numbers = {f"probe/{k}": v for part in found.values() for k, v in part.items()}
        self.trackers.log(numbers, context.update)

    def _take(self) -> dict[str, Any]:
        context = self.context
        assert self.probe is not None
        file = context.folder / "panels" / f"{context.update:06d}.png"
        panel = file if context.ranks.main else None
        encode = context.velocities.embed
        size = context.config.batch.micro
        begin = call_now if context.jury is None else context.jury.call
        return self.probe.take(
            context.model,
            lambda prompts: encode(list(prompts)),
            panel,
            size,
            begin=begin if context.ranks.main else None,
        )

    def _due(self, every: int, before: int) -> bool:
        return self.context.update // every > before // every

    def _lines(self, name: str, *, including: bool) -> JsonLines:
        return JsonLines(self.context.folder / name, self.context.update, including=including)

    def _save(self) -> None:
        context, main = self.context, self.context.ranks.main
        if main or self.student.shared:
            self.checkpoints.save(context.update, self._tensors(), self._plain(), main=main)
        context.ranks.wait()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        parts = {
            "student": self.student.tensors(),
            "optimizer": optimizer_tensors(self.optimizer),
            "method": self.method.state(),
            "random": {"torch": torch.get_rng_state()},
        }
        if self.ema is None:
            return parts
        return parts | {"ema": self.ema.state_dict()}

    def _plain(self) -> dict[str, Any]:
        context = self.context
        return {
            "round": context.round,
            "images": context.images,
            "forwards": self.forwards,
            "seconds": context.seconds,
            "broken": self.broken,
            "batches": self.batches.state(),
            "adapters": {
                name: info.sha256 for name, info in context.bank.adapters.items() if info.sha256
            },
        }

    def _restore(self, saved: Saved) -> None:
        context, record = self.context, saved.record
        if record["update"] > context.config.updates:
            raise FlowOPDError(
                f"The checkpoint in {self.checkpoints.folder} is of update {record['update']}, and "
                f"updates is {context.config.updates}. Choose another output folder, or as many "
                "updates or more."
            )
        self.student.load_state(saved.tensors["student"])
        load_optimizer_tensors(self.optimizer, saved.tensors.get("optimizer", {}))
        self.method.load_state(saved.tensors.get("method", {}))
        torch.set_rng_state(saved.tensors["random"]["torch"])
        if self.ema is not None:
            self.ema.load_state_dict(self.student.shares_of(saved.tensors["ema"]))
        self.batches.load_state(record["batches"])
        context.update, context.round = record["update"], record["round"]
        context.images = record["images"]
        self.forwards = record["forwards"]
        context.velocities.forwards = self.forwards if context.ranks.main else 0
        context.seconds, self.broken = record["seconds"], record["broken"]


def make_batches(config: TrainConfig, method: Method) -> Batches:
    return Batches(
        method.records(),
        {name: task.share for name, task in config.tasks.items()},
        prompts=config.batch.prompts,
        images_per_prompt=config.batch.images_per_prompt,
        seed=config.seed,
        mixing=config.batch.mixing,
        adaptive=config.batch.shares == "adaptive",
        same_noise=config.rollout.same_noise,
    )


def make_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over exactly the student's parameters."""
    settings = config.optimizer
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def learning_rate(config: TrainConfig, update: int) -> float:
    """Of the update after `update`: a linear warm-up, then even or along a half cosine to 0."""
    settings = config.optimizer
    warm = min(1.0, (update + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.decay == "none":
        return settings.lr * warm
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * update / config.updates))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<number of the parameter>.<name>`."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        own = spread(tensor, parameter) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(number), {})[name] = own
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
