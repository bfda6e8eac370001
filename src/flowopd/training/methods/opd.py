"""On-policy distillation from each task's own teacher, with the anchor on every sample."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowopd.algorithms.distillation import divergence_advantages, weighted_divergence
from flowopd.algorithms.settings import OPDConfig
from flowopd.algorithms.shapes import mean_square
from flowopd.algorithms.surrogate import clipped_surrogate
from flowopd.flow import Transition, VelocityFn, kl_weight, mean_log_prob, rollout
from flowopd.training.eligible import noisy_steps
from flowopd.training.method import Batch, Context, Method, Part, Piece
from flowopd.training.methods.stored import StoredPath, replay, store


class OPD(Method):
    """Equations (11)-(16)."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config.algorithm
        assert isinstance(config, OPDConfig)
        self.config = config
        self.guidance = context.config.rollout.guidance
        self.student_guidance = context.config.rollout.guidance_of(config.student_guidance)

    def updates(self, batch: Batch) -> Iterator[Iterator[Piece]]:
        chosen = self.chosen_steps(self.config.steps)
        self.count_images(batch)
        if self.config.fused:
            yield self._fused(batch, chosen)
            return
        paths = self._store(batch, chosen)
        targets = [
            {index: self._teacher(part)(step.x, step.t) for index, step in path.steps.items()}
            for part, path in zip(batch.parts, paths, strict=True)
        ]
        advantages = self._advantages(batch, paths, targets)
        for _ in range(self.config.updates_per_rollout):
            yield self._stored(batch, paths, targets, chosen, advantages)

    # The fused step: what was sampled is trained on at once, and nothing of the path is kept.

    def _fused(self, batch: Batch, chosen: Mapping[int, float]) -> Iterator[Piece]:
        last = max(chosen) if not self.config.log_reward else self.context.config.rollout.steps - 1
        latents = []
        for part in batch.parts:
            x1, noise = self.start(part)
            same = self.student_guidance == self.guidance
            student = self.context.velocities.student
            walk = rollout(
                student(part.cond, self.guidance),
                x1,
                self.context.sigmas,
                sampler=self.sampler_for(self.config.steps, chosen),
                noise=noise,
                grad_steps=chosen if same else (),
            )
            teacher, anchor = self._teacher(part), self._anchor(part)
            for step in walk:
                if step.index in chosen:
                    v = step.velocity
                    if not same:
                        v = student(part.cond, self.student_guidance)(step.x, step.t)
                    target = teacher(step.x, step.t)
                    move = step.transition
                    loss = self._pathwise(part, v, target, move)
                    loss = loss + self._mar(part, v, anchor, step.x, step.t, move)
                    yield Piece(part.task, chosen[step.index] * loss.sum() / batch.size)
                if step.index == last:
                    latents.append(step.x_next)
                    break
        if self.config.log_reward:
            self.rewards(batch, latents)

    # The stored path: for losses that need all of it, and for several updates on one rollout.

    def _store(self, batch: Batch, chosen: Mapping[int, float]) -> list[StoredPath]:
        keep = set(chosen)
        if self.config.policy_gradient and self.config.horizon == "trajectory":
            keep |= set(noisy_steps(self.context.config))
        return [
            store(
                self,
                part,
                self.context.velocities.student(part.cond, self.guidance),
                keep,
                self.sampler_for(self.config.steps, chosen),
                whole=self.config.loss == "mixed" or self.config.log_reward,
            )
            for part in batch.parts
        ]

    def _advantages(
        self,
        batch: Batch,
        paths: Sequence[StoredPath],
        targets: Sequence[Mapping[int, Tensor]],
    ) -> dict[int, Tensor]:
        """The advantages of (14), and of (15) with the task's own, by step."""
        if not self.config.policy_gradient:
            if self.config.log_reward:
                self.rewards(batch, [path.x0 for path in paths])
            return {}
        indices = sorted(paths[0].steps) if paths else []
        costs = torch.cat(
            [
                torch.stack(
                    [
                        kl_weight(path.steps[i].transition, self.config.weighting)
                        * mean_square(path.steps[i].velocity - target[i])
                        for i in indices
                    ]
                )
                for path, target in zip(paths, targets, strict=True)
            ],
            dim=1,
        )
        ranks, config = self.context.ranks, self.config
        everyone, own = ranks.gather(costs.T.cpu())
        pools, _ = ranks.gather(batch.pools)
        values = divergence_advantages(
            everyone.T,
            pools,
            horizon=config.horizon,
            normalise=config.normalise,
            clip=config.advantage_clip,
        )[:, own]
        if config.loss == "mixed" or config.log_reward:
            rewards = self.rewards(batch, [path.x0 for path in paths])
            if config.loss == "mixed":
                clip = config.advantage_clip
                values = values + self.task_advantages(batch, rewards, clip=clip).values
        return dict(zip(indices, values, strict=True))

    def _stored(
        self,
        batch: Batch,
        paths: Sequence[StoredPath],
        targets: Sequence[Mapping[int, Tensor]],
        chosen: Mapping[int, float],
        advantages: Mapping[int, Tensor],
    ) -> Iterator[Piece]:
        context, config = self.context, self.config
        for part, path, target in zip(batch.parts, paths, targets, strict=True):
            student = context.velocities.student(part.cond, self.student_guidance)
            anchor = self._anchor(part)
            for index, weight in chosen.items():
                step = path.steps[index]
                v, move = replay(context, step, student)
                divergence = self._pathwise(part, v, target[index], step.transition)
                loss = self._mar(part, v, anchor, step.x, step.t, step.transition)
                if config.pathwise:
                    loss = loss + divergence
                if config.policy_gradient:
                    assert step.log_prob is not None
                    surrogate = clipped_surrogate(
                        mean_log_prob(move, step.x_next),
                        step.log_prob,
                        advantages[index][part.places].to(v.device),
                        clip=config.clip,
                    )
                    context.meter.add("ratio", surrogate.ratio)
                    context.meter.add("clip_share", surrogate.clipped)
                    loss = loss + surrogate.loss
                yield Piece(part.task, weight * loss.sum() / batch.size)

    # The terms of the loss.

    def _pathwise(self, part: Part, v: Tensor, target: Tensor, move: Transition) -> Tensor:
        """(13) of each sample at one step."""
        meter = self.context.meter
        loss = weighted_divergence(v, target, kl_weight(move, self.config.weighting))
        meter.add(f"task/{part.task}/divergence", loss.detach())
        meter.add(f"task/{part.task}/velocity_error", mean_square(v.detach() - target))
        return loss

    def _mar(
        self,
        part: Part,
        v: Tensor,
        anchor: VelocityFn | None,
        x: Tensor,
        t: Tensor,
        move: Transition,
    ) -> Tensor:
        """(16) of each sample at one step: on a share of them, weighed up."""
        config = self.config.anchor
        if config is None or anchor is None:
            return torch.zeros(len(v), device=v.device)
        rows = self._anchored(part)
        target = anchor(x[rows], t[rows])
        weight = kl_weight(move, self.config.weighting)[rows]
        divergence = weighted_divergence(v[rows], target, weight)
        self.context.meter.add("anchor/divergence", divergence.detach())
        scale = config.weight * len(v) / len(rows)
        return torch.zeros(len(v), device=v.device).index_add(0, rows, scale * divergence)

    def _teacher(self, part: Part) -> VelocityFn:
        context = self.context
        guidance = context.config.teacher_guidance(part.task)
        return context.velocities.frozen(context.teachers[part.task], part.cond, guidance)

    def _anchored(self, part: Part) -> Tensor:
        """Which samples of a part the anchor sees, the same ones all the way."""
        config = self.config.anchor
        count = len(part) if config is None else math.ceil(config.share * len(part))
        rng = self.context.rng(2, part.samples[0].seed)
        rows = sorted(rng.permutation(len(part))[:count].tolist())
        return torch.tensor(rows, device=self.context.model.device)

    def _anchor(self, part: Part) -> VelocityFn | None:
        config = self.config.anchor
        if config is None:
            return None
        guidance = self.context.config.rollout.guidance_of(config.guidance)
        cond = part.cond.select(self._anchored(part))
        return self.context.velocities.frozen(self.context.anchor, cond, guidance)
