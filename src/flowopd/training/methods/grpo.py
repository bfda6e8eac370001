"""Flow-GRPO: one reward a task, several tasks at once being GRPO-Mix."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowopd.algorithms.advantages import Advantages
from flowopd.algorithms.distillation import weighted_divergence
from flowopd.algorithms.settings import GRPOConfig
from flowopd.algorithms.surrogate import clipped_surrogate
from flowopd.flow import kl_weight, mean_log_prob
from flowopd.training.method import Batch, Context, Method, Part, Piece
from flowopd.training.methods.stored import StoredPath, StoredStep, replay, store


class GRPO(Method):
    """Equations (7)-(9)."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config.algorithm
        assert isinstance(config, GRPOConfig)
        self.config = config

    def updates(self, batch: Batch) -> Iterator[Iterator[Piece]]:
        chosen = self.chosen_steps(self.config.steps)
        sampler = self.sampler_for(self.config.steps, chosen)
        guidance = self.context.config.rollout.guidance
        scoring, paths = self.scoring(batch), list[StoredPath]()
        for part in batch.parts:
            student = self.context.velocities.student(part.cond, guidance)
            paths.append(store(self, part, student, set(chosen), sampler))
            scoring.add(part, paths[-1].x0)
        self.count_images(batch)
        found = self.task_advantages(
            batch, scoring.rewards(), spread=self.config.spread, clip=self.config.advantage_clip
        )
        for _ in range(self.config.updates_per_rollout):
            yield self._pieces(batch, paths, chosen, found)

    def _pieces(
        self,
        batch: Batch,
        paths: Sequence[StoredPath],
        chosen: Mapping[int, float],
        found: Advantages,
    ) -> Iterator[Piece]:
        """Samples of groups without spread are left out, KL and all: they say nothing.

        Where the student is in shares all processes have the same passes, and such samples stay
        in theirs with a loss of 0.
        """
        shared, device = self.context.roles.student.shared, self.context.model.device
        for part, path in zip(batch.parts, paths, strict=True):
            used = found.used[part.places]
            kept = torch.arange(len(part)) if shared else used.nonzero().flatten()
            if not len(kept):
                continue
            picked = part.pick(kept)
            advantages = found.values[picked.places].to(device, non_blocking=True)
            counts = used[kept].to(device, non_blocking=True)
            for index, weight in chosen.items():
                loss = self._loss(picked, path.steps[index].pick(kept), advantages, counts)
                yield Piece(part.task, weight * loss.sum() / batch.size, index)

    def _loss(self, part: Part, step: StoredStep, advantages: Tensor, counts: Tensor) -> Tensor:
        """(8) and (9) of each sample at one step; 0, and in no mean, where it does not count."""
        context = self.context
        guidance = context.config.rollout.guidance
        v, move = replay(context, step, context.velocities.student(part.cond, guidance))
        assert step.log_prob is not None
        surrogate = clipped_surrogate(
            mean_log_prob(move, step.x_next), step.log_prob, advantages, clip=self.config.clip
        )
        seen = {
            "ratio": surrogate.ratio,
            "ratio_spread": (surrogate.ratio - 1).abs(),
            "clip_share": surrogate.clipped,
        }
        loss = surrogate.loss
        if self.config.kl:
            base = context.velocities.frozen(None, part.cond, guidance)(step.x, step.t)
            kl = weighted_divergence(v, base, kl_weight(step.transition, self.config.weighting))
            seen["base/divergence"] = kl
            loss = loss + self.config.kl * kl
        for name, values in seen.items():
            context.meter.add(name, torch.where(counts, values.detach(), torch.nan))
        return loss * counts
