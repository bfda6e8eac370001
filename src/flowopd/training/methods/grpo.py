"""Flow-GRPO: one reward a task, several tasks at once being GRPO-Mix."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

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
        advantages = self.task_advantages(
            batch, scoring.rewards(), spread=self.config.spread, clip=self.config.advantage_clip
        ).values
        for _ in range(self.config.updates_per_rollout):
            yield self._pieces(batch, paths, chosen, advantages)

    def _pieces(
        self,
        batch: Batch,
        paths: Sequence[StoredPath],
        chosen: Mapping[int, float],
        advantages: Tensor,
    ) -> Iterator[Piece]:
        for part, path in zip(batch.parts, paths, strict=True):
            own = advantages[part.places]
            idle = not own.any() and not self.config.kl
            if idle and not self.context.roles.student.shared:
                continue
            mine = own.to(self.context.model.device, non_blocking=True)
            for index, weight in chosen.items():
                loss = self._loss(part, path.steps[index], mine)
                yield Piece(part.task, weight * loss.sum() / batch.size, index)

    def _loss(self, part: Part, step: StoredStep, advantages: Tensor) -> Tensor:
        """(8) and (9) of each sample at one step."""
        context, meter = self.context, self.context.meter
        guidance = context.config.rollout.guidance
        v, move = replay(context, step, context.velocities.student(part.cond, guidance))
        assert step.log_prob is not None
        surrogate = clipped_surrogate(
            mean_log_prob(move, step.x_next), step.log_prob, advantages, clip=self.config.clip
        )
        meter.add("ratio", surrogate.ratio)
        meter.add("ratio_spread", (surrogate.ratio - 1).abs())
        meter.add("clip_share", surrogate.clipped)
        loss = surrogate.loss
        if self.config.kl:
            base = context.velocities.frozen(None, part.cond, guidance)(step.x, step.t)
            kl = weighted_divergence(v, base, kl_weight(step.transition, "kl"))
            meter.add("base/divergence", kl.detach())
            loss = loss + self.config.kl * kl
        return loss
