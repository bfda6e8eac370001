"""On-policy distillation from each task's own teacher, with the anchor on every sample."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowopd.algorithms.distillation import divergence_advantages, weighted_divergence
from flowopd.algorithms.settings import OPDConfig
from flowopd.algorithms.shapes import mean_square
from flowopd.algorithms.surrogate import clipped_surrogate
from flowopd.flow import Transition, VelocityFn, kl_weight, mean_log_prob, rollout
from flowopd.tasks.batches import Sample
from flowopd.training.eligible import noisy_steps
from flowopd.training.method import Batch, Context, Method, Part, Piece
from flowopd.training.methods.anchored import Anchored
from flowopd.training.methods.stored import StoredPath, replay, store
from flowopd.training.scoring import Scoring


class BoundAnchor(NamedTuple):
    """The anchor for some samples of a part."""

    velocity: VelocityFn
    rows: Tensor
    """Where in the part they are."""
    weight: float
    """What each of them stands for."""


class OPD(Method):
    """Equations (11)-(16)."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config.algorithm
        assert isinstance(config, OPDConfig)
        self.config = config
        self.guidance = context.config.rollout.guidance
        self.student_guidance = context.config.rollout.guidance_of(config.student_guidance)

    def dealt(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those that the anchor sees come first: every pass has about as many of them."""
        anchored = self._anchored(samples)
        return sorted(samples, key=lambda sample: sample not in anchored)

    def updates(self, batch: Batch) -> Iterator[Iterator[Piece]]:
        chosen = self.chosen_steps(self.config.steps)
        self.count_images(batch)
        if self.config.fused:
            yield self._fused(batch, chosen)
            return
        scoring = self.scoring(batch)
        paths = self._store(batch, chosen, scoring)
        targets = [
            {index: self._teacher(part)(step.x, step.t) for index, step in path.steps.items()}
            for part, path in zip(batch.parts, paths, strict=True)
        ]
        advantages = self._advantages(batch, paths, targets, scoring)
        for _ in range(self.config.updates_per_rollout):
            yield self._stored(batch, paths, targets, chosen, advantages)

    # The fused step: what was sampled is trained on at once, and nothing of the path is kept.

    def _fused(self, batch: Batch, chosen: Mapping[int, float]) -> Iterator[Piece]:
        anchored = self._anchored(batch.everyone)
        last = max(chosen) if not self.config.log_reward else self.context.config.rollout.steps - 1
        scoring = self.scoring(batch)
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
            teacher, anchor = self._teacher(part), self._anchor(part, anchored)
            for step in walk:
                if step.index in chosen:
                    v = step.velocity
                    if not same:
                        v = student(part.cond, self.student_guidance)(step.x, step.t)
                    target = teacher(step.x, step.t)
                    move = step.transition
                    loss = self._pathwise(part, v, target, move)
                    loss = loss + self._mar(v, anchor, step.x, step.t, move)
                    loss = chosen[step.index] * loss.sum() / batch.size
                    yield Piece(part.task, loss, step.index)
                if step.index == last:
                    if self.config.log_reward:
                        scoring.add(part, step.x_next)
                    break
        if self.config.log_reward:
            scoring.rewards(only_logged=True)

    # The stored path: for losses that need all of it, and for several updates on one rollout.

    def _store(
        self, batch: Batch, chosen: Mapping[int, float], scoring: Scoring
    ) -> list[StoredPath]:
        keep = set(chosen)
        if self.config.policy_gradient and self.config.horizon == "trajectory":
            keep |= set(noisy_steps(self.context.config))
        sampler = self.sampler_for(self.config.steps, chosen)
        paths = []
        for part in batch.parts:
            student = self.context.velocities.student(part.cond, self.guidance)
            paths.append(store(self, part, student, keep, sampler, whole=self.config.rewarded))
            if self.config.rewarded:
                scoring.add(part, paths[-1].x0)
        return paths

    def _advantages(
        self,
        batch: Batch,
        paths: Sequence[StoredPath],
        targets: Sequence[Mapping[int, Tensor]],
        scoring: Scoring,
    ) -> dict[int, Tensor]:
        """The advantages of (14), and of (15) with the task's own, by step."""
        if not self.config.policy_gradient:
            if self.config.rewarded:
                scoring.rewards(only_logged=True)
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
        if config.rewarded:
            rewards = scoring.rewards(only_logged=config.loss != "mixed")
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
        anchored = self._anchored(batch.everyone)
        for part, path, target in zip(batch.parts, paths, targets, strict=True):
            student = context.velocities.student(part.cond, self.student_guidance)
            anchor = self._anchor(part, anchored)
            for index, weight in chosen.items():
                step = path.steps[index]
                v, move = replay(context, step, student)
                divergence = self._pathwise(part, v, target[index], step.transition)
                loss = self._mar(v, anchor, step.x, step.t, step.transition)
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
                yield Piece(part.task, weight * loss.sum() / batch.size, index)

    # The terms of the loss.

    def _pathwise(self, part: Part, v: Tensor, target: Tensor, move: Transition) -> Tensor:
        """(13) of each sample at one step."""
        meter = self.context.meter
        loss = weighted_divergence(v, target, kl_weight(move, self.config.weighting))
        meter.add(f"task/{part.task}/divergence", loss.detach())
        meter.add(f"task/{part.task}/velocity_error", mean_square(v.detach() - target))
        return loss

    def _mar(
        self, v: Tensor, anchor: BoundAnchor | None, x: Tensor, t: Tensor, move: Transition
    ) -> Tensor:
        """(16) of each sample at one step: on a share of them, weighed up."""
        config = self.config.anchor
        if config is None or anchor is None:
            return torch.zeros(len(v), device=v.device)
        rows = anchor.rows
        target = anchor.velocity(x[rows], t[rows])
        weight = kl_weight(move, self.config.weighting)[rows]
        divergence = weighted_divergence(v[rows], target, weight)
        self.context.meter.add("anchor/divergence", divergence.detach())
        scale = config.weight * anchor.weight
        return torch.zeros(len(v), device=v.device).index_add(0, rows, scale * divergence)

    def _teacher(self, part: Part) -> VelocityFn:
        context = self.context
        guidance = context.config.teacher_guidance(part.task)
        return context.velocities.frozen(context.roles.teachers[part.task], part.cond, guidance)

    def _anchored(self, samples: Sequence[Sample]) -> Anchored:
        """Which samples of all processes the anchor sees, the same ones all the way."""
        config = self.config.anchor
        share = 0.0 if config is None else config.share
        return Anchored(samples, share, self.context.rng(2))

    def _anchor(self, part: Part, anchored: Anchored) -> BoundAnchor | None:
        """None where the anchor sees no sample of the part."""
        config, context = self.config.anchor, self.context
        rows = [row for row, sample in enumerate(part.samples) if sample in anchored]
        if config is None or not rows:
            return None
        guidance = context.config.rollout.guidance_of(config.guidance)
        index = torch.tensor(rows).to(context.model.device, non_blocking=True)
        velocity = context.velocities.frozen(
            context.roles.anchor, part.cond.select(index), guidance
        )
        return BoundAnchor(velocity, index, anchored.weights[part.task])
