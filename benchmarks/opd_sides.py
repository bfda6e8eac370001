"""The two sides of the benchmark, each ready to do one update after the other.

Ours is made of the project's own classes: the bank, the velocities, the method and the trainer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowopd.tasks.batches import Sample
from flowopd.training.method import Context
from flowopd.training.methods import METHODS
from flowopd.training.ranks import Ranks
from flowopd.training.roles import Roles, open_roles
from flowopd.training.run import TrainPlan, prepare
from flowopd.training.trainer import Trainer
from flowopd.training.velocities import Velocities
from opd_setup import (
    ANCHOR_WEIGHT,
    GUIDANCE,
    LEARNING_RATE,
    NOISE_LEVEL,
    Material,
    Options,
    recipe,
)
from random_sd3 import RandomSD3
from released_style import Prompts, ReleasedStyle, Settings


class Side(Protocol):
    """Something that trains a student on samples."""

    def update(self, samples: list[Sample]) -> None:
        """All the work of one optimizer step."""

    def gradients(self, samples: list[Sample]) -> dict[str, Tensor]:
        """The student's gradients by key, without a step."""

    def networks(self) -> Mapping[str, nn.Module]:
        """The transformers through which samples go."""

    def held(self) -> list[Tensor]:
        """Everything that stays in memory between updates."""


@dataclass
class Loaded:
    """A model with everybody on it; several of ours may share it."""

    plan: TrainPlan
    model: RandomSD3
    roles: Roles


def load(options: Options, material: Material, variant: str) -> Loaded:
    plan = prepare(recipe(options, material, variant))
    model = plan.config.model.open()
    assert isinstance(model, RandomSD3)
    return Loaded(plan, model, open_roles(plan.config, plan.files, model, 1))


class Ours:
    """One recipe, trained by the trainer."""

    def __init__(self, loaded: Loaded, options: Options, material: Material, variant: str) -> None:
        config = recipe(options, material, variant)
        model, roles = loaded.model, loaded.roles
        self.context = Context(
            config=config,
            model=model,
            roles=roles,
            velocities=Velocities(model, roles, model.embeddings),
            reward=loaded.plan.reward,
            ranks=Ranks(),
            records=loaded.plan.records,
            folder=Path(material.folder) / variant,
        )
        self.method = METHODS[config.algorithm.name](self.context)
        self.trainer = Trainer(self.context, self.method, None, recipe=variant)

    def draw(self) -> list[Sample]:
        """The samples of the next update."""
        return self.trainer.batches.draw()

    def update(self, samples: list[Sample]) -> None:
        for pieces in self.method.updates(self.method.batch(samples)):
            self.trainer.make_update(pieces)
            self.context.meter.take(self.context.ranks)
        self.context.round += 1

    def gradients(self, samples: list[Sample]) -> dict[str, Tensor]:
        self.trainer.optimizer.zero_grad(set_to_none=True)
        for pieces in self.method.updates(self.method.batch(samples)):
            for piece in pieces:
                piece.loss.backward()
        named = self.trainer.student.parameters()
        found = {key: p.grad.clone() for key, p in named if p.grad is not None}
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return found

    def networks(self) -> Mapping[str, nn.Module]:
        return {"all": self.context.model.transformer}

    def held(self) -> list[Tensor]:
        modules = (self.context.model.transformer, self.context.model.vae)
        return tensors_of(modules, self.trainer.optimizer)


class Released:
    """The baseline, on the samples and the embeddings of ours."""

    def __init__(self, options: Options, material: Material) -> None:
        model = options.model().open()
        settings = Settings(
            steps=options.steps,
            guidance=GUIDANCE,
            shift=model.shift,
            noise_level=NOISE_LEVEL,
            anchor_weight=ANCHOR_WEIGHT,
            learning_rate=LEARNING_RATE,
            clip_norm=1.0,
            frozen_in=options.frozen_in,
        )
        self.embed = model.embeddings
        self.shape = model.latent_shape(model.size.image, model.size.image)
        self.micro = options.micro
        self.released = ReleasedStyle(
            model.transformer, model.vae, material.adapters, settings, device=model.device
        )

    def batches(self, samples: list[Sample]) -> list[Prompts]:
        found = []
        for task in dict.fromkeys(sample.task for sample in samples):
            own = [sample for sample in samples if sample.task == task]
            for first in range(0, len(own), self.micro):
                found.append(self._prompts(task, own[first : first + self.micro]))
        return found

    def update(self, samples: list[Sample]) -> None:
        self.released.update(self.batches(samples))

    def gradients(self, samples: list[Sample]) -> dict[str, Tensor]:
        self.released.optimizer.zero_grad(set_to_none=True)
        self.released.backward(self.batches(samples))
        found = {key: grad.clone() for key, grad in self.released.gradients().items()}
        self.released.optimizer.zero_grad(set_to_none=True)
        return found

    def networks(self) -> Mapping[str, nn.Module]:
        return {"student": self.released.student, **self.released.frozen}

    def held(self) -> list[Tensor]:
        modules = (self.released.vae, *self.networks().values())
        return tensors_of(modules, self.released.optimizer)

    def _prompts(self, task: str, samples: list[Sample]) -> Prompts:
        return Prompts(
            task=task,
            cond=self.embed([sample.record.prompt for sample in samples]),
            uncond=self.embed([""] * len(samples)),
            start_seeds=[sample.start_seed for sample in samples],
            seeds=[sample.seed for sample in samples],
            latent_shape=self.shape,
        )


def tensors_of(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, buffers, whatever other tensors the modules keep, and the optimizer's state."""
    kept: list[Any] = [list(optimizer.state.values())]
    for module in modules:
        kept += [vars(part) for part in module.modules()]
    return list(_tensors_in(kept))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
