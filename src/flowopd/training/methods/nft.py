"""DiffusionNFT: flow matching on the student's own pictures, towards the better of them (17)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowopd.algorithms.advantages import Advantages
from flowopd.algorithms.distillation import weighted_divergence
from flowopd.algorithms.flow_matching import diffusion_nft, noised
from flowopd.algorithms.settings import NFTConfig
from flowopd.flow import NoiseSource
from flowopd.policy.bank import Role
from flowopd.tasks.batches import Sample
from flowopd.training.method import Batch, Context, Method, Part, Piece
from flowopd.training.methods.stored import store

OLD = "old"


class NFT(Method):
    """Rollouts by an older student; training at guidance 1."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, bank = context.config.algorithm, context.bank
        assert isinstance(config, NFTConfig)
        assert bank.student is not None
        self.config = config
        self._student = bank.student
        bank.copy(OLD, bank.student, Role.ANCHOR)

    def updates(self, batch: Batch) -> Iterator[Iterator[Piece]]:
        guidance = self.context.config.rollout.guidance
        scoring, latents = self.scoring(batch), list[Tensor]()
        for part in batch.parts:
            old = self.context.velocities.frozen(OLD, part.cond, guidance)
            latents.append(store(self, part, old, set(), self.sampler()).x0)
            scoring.add(part, latents[-1])
        self.count_images(batch)
        found = self.task_advantages(
            batch, scoring.rewards(), spread=self.config.spread, clip=self.config.advantage_clip
        )
        for _ in range(self.config.updates_per_rollout):
            yield self._pieces(batch, latents, found)

    @torch.no_grad()
    def after_round(self) -> None:
        """`old <- d old + (1 - d) student`."""
        bank, old = self.context.bank, self.config.old
        d = min(old.slope * max(0, self.context.round - old.after), old.highest)
        student = bank.state_dict(self._student)
        for key, tensor in bank.state_dict(OLD).items():
            tensor.lerp_(student[key], 1 - d)

    def state(self) -> dict[str, Tensor]:
        return self.context.bank.state_dict(OLD)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.context.bank.load_state_dict(OLD, state)

    def _pieces(
        self, batch: Batch, latents: Sequence[Tensor], found: Advantages
    ) -> Iterator[Piece]:
        """Samples of groups without spread are left out: they say nothing."""
        for part, x0 in zip(batch.parts, latents, strict=True):
            kept = found.used[part.places].nonzero().flatten()
            if not len(kept):
                continue
            chosen = part.pick(kept)
            x0_kept = x0[kept.to(x0.device, non_blocking=True)]
            advantages = found.values[chosen.places].to(x0.device, non_blocking=True)
            t, x1 = self._draws(chosen.samples)
            for k in range(self.config.times):
                loss = self._loss(chosen, x0_kept, t[k], x1[k], advantages)
                yield Piece(part.task, loss.sum() / (batch.size * self.config.times))

    def _draws(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Noise levels [times, B] of the grid, without repetition, and noise [times, B, ...]."""
        model, rollout = self.context.model, self.context.config.rollout
        update = self.context.update
        seeds = [(sample.seed * 1_000_003 + update) % (1 << 63) for sample in samples]
        levels = self.context.sigmas[:-1]
        picks = [
            torch.randperm(len(levels), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        t = torch.stack([levels[pick[: self.config.times]] for pick in picks], dim=1)
        noise = NoiseSource(seeds)
        shape = model.latent_shape(rollout.height, rollout.width)
        x1 = torch.stack([noise.draw(shape, model.device) for _ in range(self.config.times)])
        return t.to(model.device, non_blocking=True), x1

    def _loss(self, part: Part, x0: Tensor, t: Tensor, x1: Tensor, advantages: Tensor) -> Tensor:
        velocities, meter = self.context.velocities, self.context.meter
        x_t = noised(x0, x1, t)
        student = velocities.student(part.cond, 1.0)(x_t, t)
        old = velocities.frozen(OLD, part.cond, 1.0)(x_t, t)
        found = diffusion_nft(
            student,
            old,
            x0,
            x_t,
            t,
            advantages,
            beta=self.config.beta,
            highest=self.config.advantage_clip,
        )
        meter.add("optimality", found.optimality)
        if not self.config.kl:
            return found.loss
        base = velocities.frozen(None, part.cond, 1.0)(x_t, t)
        divergence = weighted_divergence(student, base, torch.ones_like(t))
        meter.add("base/divergence", divergence.detach())
        return found.loss + self.config.kl * divergence
