"""Gradient interference: do the tasks pull the student the same way?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowopd.training.ranks import Ranks


class TaskGradients:
    """Takes an update's gradient apart by task, as the tasks' pieces add to it in turn."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._before = self._gradient()
        self._parts: dict[str, Tensor] = {}

    def after(self, task: str) -> None:
        """What was added to the gradient since the last call is the task's."""
        now = self._gradient()
        added = now - self._before
        self._parts[task] = self._parts[task] + added if task in self._parts else added
        self._before = now

    def of(self, task: str) -> Tensor:
        """The task's part of the gradient, flat; 0 if it had none."""
        return self._parts.get(task, torch.zeros_like(self._before))

    def _gradient(self) -> Tensor:
        parts = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self._parameters
        ]
        return torch.cat([part.reshape(-1) for part in parts])


def interference(gradients: TaskGradients, tasks: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """The cosine of every pair of tasks with a gradient, as `a|b`."""
    flat = {task: gradients.of(task).clone() for task in tasks}
    ranks.add(list(flat.values()))
    norms = {task: float(gradient.norm()) for task, gradient in flat.items()}
    moving = [task for task in tasks if norms[task] > 0]
    return {
        f"{a}|{b}": float(flat[a] @ flat[b]) / (norms[a] * norms[b])
        for i, a in enumerate(moving)
        for b in moving[i + 1 :]
    }
