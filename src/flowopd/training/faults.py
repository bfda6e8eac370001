"""Where a number of an update was not finite: in which task, step and tensor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowopd.training.method import Piece
from flowopd.training.ranks import Ranks


class _Done(NamedTuple):
    """A piece whose gradient was added."""

    task: str
    step: int | None
    loss: Tensor

    def __str__(self) -> str:
        step = "" if self.step is None else f" at step {self.step} of the rollout"
        return f"the task {self.task!r}{step}"


class Faults:
    """Keeps the pieces' losses on their device; looks at them when something is not finite.

    Which piece broke a gradient can only be told while the pieces are added up. That costs a look
    after each, and is done where `watch` says so: after an update that was skipped.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], ranks: Ranks) -> None:
        self._named, self._ranks = named, ranks
        self.begin(watch=False)

    def begin(self, *, watch: bool) -> None:
        """A new update."""
        self._pieces: list[_Done] = []
        self._watch = watch
        self._seen = ""

    def after(self, piece: Piece) -> None:
        """The gradient of a piece was added."""
        done = _Done(piece.task, piece.step, piece.loss.detach())
        self._pieces.append(done)
        if self._watch and not self._seen:
            key = self._broken_gradient()
            self._seen = f"the gradient of {key} in {done}" if key else ""

    def loss(self) -> Tensor:
        """Of all pieces of this process, [1]."""
        if not self._pieces:
            return torch.zeros(1, device=self._named[0][1].device)
        return torch.stack([done.loss.float() for done in self._pieces]).sum(0, keepdim=True)

    def found(self) -> str:
        """What was not finite, in any of the processes; all of them have to ask."""
        key = self._broken_gradient()
        said = self._ranks.collect((self._own(), f"the gradient of {key}" if key else ""))
        named = [piece for piece, _ in said if piece] + [tensor for _, tensor in said if tensor]
        return str(named[0]) if named else "the norm of the gradient"

    def _own(self) -> str:
        """What this process knows of the piece; empty if it was none of its own."""
        if self._seen:
            return self._seen
        finite = [bool(done.loss.isfinite()) for done in self._pieces]
        return "" if all(finite) else f"the loss of {self._pieces[finite.index(False)]}"

    def _broken_gradient(self) -> str:
        """The first parameter whose gradient (here) is not finite; empty if there is none."""
        for key, parameter in self._named:
            if parameter.grad is not None and not bool(_here(parameter.grad).isfinite().all()):
                return key
        return ""


def _here(tensor: Tensor) -> Tensor:
    """This process's share of a tensor in shares: looking at it takes nobody else."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
