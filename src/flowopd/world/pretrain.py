"""Making the world's base model from nothing: flow matching (10) on rendered images.

A step's data and noise depend on (seed, step) alone, so a run that was killed goes on bit for bit
where its last checkpoint was. Up to where the learning rate begins to fall, runs of different
length are the same run: a finished run can be prolonged from a checkpoint before that point.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.files import replacing, write_atomic
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.grammar import COMPOSE, word
from flowopd.world.muon import Muon
from flowopd.world.network import WorldNetwork, fresh_network, to_latents
from flowopd.world.recipe import PretrainConfig, Stage, learning_rate
from flowopd.world.render import render
from flowopd.world.text_encoder import token_ids

log = logging.getLogger(__name__)


ONE_OBJECT = (COMPOSE["single_object"], COMPOSE["colors"])


def training_record(stage: Stage, rng: np.random.Generator) -> PromptRecord:
    if rng.random() < stage.text_share:
        return word(rng)
    draws = tuple(COMPOSE.values())
    if stage.crowded_share is not None:
        crowded = tuple(COMPOSE[tag] for tag in stage.crowded)
        draws = crowded if rng.random() < stage.crowded_share else ONE_OBJECT
    return draws[rng.integers(len(draws))](rng)


def batch(config: PretrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """Latents [B, 48, 8, 8] and token ids [B, 8] of one step."""
    rng = np.random.default_rng([config.seed, step])
    stage = config.stage(step)
    records = [training_record(stage, rng) for _ in range(config.batch_size)]
    images = np.stack([render(record, rng) for record in records])
    dropped = rng.random(config.batch_size) < config.caption_dropout
    prompts = ["" if drop else r.prompt for r, drop in zip(records, dropped, strict=True)]
    return to_latents(torch.from_numpy(images).permute(0, 3, 1, 2)), token_ids(prompts)


def flow_matching_loss(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    ids: Tensor,
    *,
    seed: int,
    stage: Stage,
) -> Tensor:
    """(10) at logit-normal t: the mean squared error of the velocity against x1 - x0."""
    noise = torch.Generator().manual_seed(seed)
    logit = stage.spread * torch.randn(len(x0), generator=noise) + math.log(stage.shift)
    t = torch.sigmoid(logit)
    x1 = torch.randn(x0.shape, generator=noise)
    t_B111 = t[:, None, None, None]
    error = velocity((1 - t_B111) * x0 + t_B111 * x1, t, ids) - (x1 - x0)
    return error.square().mean()


@dataclass
class Pretraining:
    """Everything that a step changes."""

    config: PretrainConfig
    network: WorldNetwork
    average: WorldNetwork
    optimizers: list[torch.optim.Optimizer]
    step: int = 0

    @classmethod
    def fresh(cls, config: PretrainConfig) -> "Pretraining":
        network = fresh_network(config.seed)
        average = fresh_network(config.seed).requires_grad_(False)
        return cls(config, network, average, build_optimizers(config, network))

    def state(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def update_average(self) -> None:
        """Exponential moving average, with a shorter memory at the beginning."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        averages, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)


def build_optimizers(config: PretrainConfig, network: WorldNetwork) -> list[torch.optim.Optimizer]:
    named = list(network.named_parameters())
    chosen = {
        name
        for name, p in named
        if config.muon and p.ndim == 2 and "transformer_blocks" in name and "norm" not in name
    }
    matrices = [p for name, p in named if name in chosen]
    others = [p for name, p in named if name not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=config.learning_rate))
    return optimizers


def start(config: PretrainConfig, folder: Path) -> Pretraining:
    """A fresh run, or the one that the folder's newest whole checkpoint holds."""
    run = Pretraining.fresh(config)
    resume(run, folder)
    return run


def train(run: Pretraining, folder: Path) -> Iterator[float]:
    """Trains to the end, yielding the loss after every step; saves as it goes."""
    config = run.config
    velocity = torch.compile(run.network) if config.compile else run.network
    while run.step < config.steps:
        rate = learning_rate(config, run.step)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        x0, ids = batch(config, run.step)
        seed = config.seed * 1_000_003 + run.step
        loss = flow_matching_loss(velocity, x0, ids, seed=seed, stage=config.stage(run.step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.update_average()
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            save_checkpoint(run, folder)
        yield loss.item()


def checkpoints(folder: Path) -> list[Path]:
    """Newest last."""
    return sorted(folder.glob("step-*.pt"))


def save_checkpoint(run: Pretraining, folder: Path) -> None:
    with replacing(folder / f"step-{run.step:07d}.pt") as temporary:
        torch.save(run.state(), temporary)
    for old in checkpoints(folder)[: -run.config.keep]:
        old.unlink()


def resume(run: Pretraining, folder: Path) -> None:
    """Goes on from the newest whole checkpoint; one of another recipe is refused."""
    for path in reversed(checkpoints(folder)):
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnpicklingError) as error:
            log.warning("%s is not a whole checkpoint (%s); trying the one before.", path, error)
            continue
        saved = build(PretrainConfig, state["config"], where=f"{path} is of another version")
        refuse_another_recipe(run.config, saved, state["step"], path)
        run.restore(state)
        log.info("Going on from %s.", path)
        return


def refuse_another_recipe(
    asked: PretrainConfig, saved: PretrainConfig, step: int, path: Path
) -> None:
    """A run may be prolonged or cut short as long as its learning rate has not begun to fall."""
    ours, theirs = asked.model_dump(mode="json"), saved.model_dump(mode="json")
    housekeeping = {"checkpoint_every", "keep"}
    if step <= min(asked.decay_start, saved.decay_start):
        housekeeping |= {"steps", "decay"}
    changed = [key for key in ours if ours[key] != theirs[key] and key not in housekeeping]
    if changed:
        detail = ", ".join(f"{key} was {theirs[key]}, now {ours[key]}" for key in changed)
        raise FlowOPDError(
            f"{path} belongs to another recipe: {detail}. Choose another output folder, or the "
            f"recipe that it was made with."
        )


class LossLog:
    """A JSON line every `every` steps: step, mean loss, images, seconds of training."""

    def __init__(self, path: Path, run: Pretraining, every: int = 50) -> None:
        self.path, self.run, self.every = path, run, every
        self.losses: list[float] = []
        rows = _rows(path, run.step)
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.start = time.monotonic()
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        if self.run.step % self.every and self.run.step != self.run.config.steps:
            return
        row = {
            "step": self.run.step,
            "loss": round(float(np.mean(self.losses)), 6),
            "images": self.run.step * self.run.config.batch_size,
            "seconds": round(self.seconds + time.monotonic() - self.start, 1),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.losses = []


def _rows(path: Path, step: int) -> list[dict[str, Any]]:
    """What an earlier process logged up to the step from which this one goes on."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["step"] <= step]
