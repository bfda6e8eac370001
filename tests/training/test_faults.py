"""Numbers that are not finite: the update is skipped, and what broke is named."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, config_for
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.training.faults import Faults
from flowopd.training.method import Piece
from flowopd.training.methods.opd import OPD
from flowopd.training.ranks import Ranks
from flowopd.training.record import read_lines
from flowopd.training.run import prepare, train

pytestmark = pytest.mark.usefixtures("fake_plugins")


class _Broken(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * math.nan


def break_loss(loss: Tensor) -> Tensor:
    return loss * math.nan


def break_gradient(loss: Tensor) -> Tensor:
    return _Broken.apply(loss)  # type: ignore[no-any-return, no-untyped-call]


def broken_at(
    monkeypatch: pytest.MonkeyPatch, updates: set[int], how: Callable[[Tensor], Tensor]
) -> None:
    """Break the task "words" from the third step of the rollout on, in these updates."""
    inner = OPD._mar
    calls: dict[int, int] = {}

    def broken(self: OPD, *args: Any) -> Tensor:
        update = self.context.update
        number = calls.get(update, 0)
        calls[update] = number + 1
        found = inner(self, *args)
        in_words = number >= 8  # before come two passes of the task "shapes", of four steps each
        if update in updates and in_words and number % 4 >= 2:
            return how(found + 0 * args[0].sum())
        return found

    monkeypatch.setattr(OPD, "_mar", broken)


@pytest.mark.parametrize("how", [break_loss, break_gradient])
def test_one_update_is_skipped(
    tmp_path: Path,
    how: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken_at(monkeypatch, {2}, how)
    train(prepare(config_for(tmp_path, ALGORITHMS["opd"])), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "log.jsonl")
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 0, 0, 0]
    place = "the loss of the task 'words' at step 2 of the rollout"
    found = place if how is break_loss else "the gradient of to_q.lora_A.weight"
    assert f"warning: update 3 skipped: {found} is not finite." in capsys.readouterr().err


@pytest.mark.parametrize("how", [break_loss, break_gradient])
def test_three_in_a_row_end_the_run_and_are_named(
    tmp_path: Path, how: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first of them, every piece is looked at: step, task and tensor are known."""
    broken_at(monkeypatch, {1, 3, 4, 5}, how)
    with pytest.raises(FlowOPDError) as caught:
        train(prepare(config_for(tmp_path, ALGORITHMS["opd"])), tmp_path / "run")
    assert "3 updates in a row (the last is 6) had a number that is not finite" in str(caught.value)
    named = "the gradient of to_q.lora_A.weight in the task 'words' at step 2 of the rollout"
    assert named in str(caught.value)


def test_a_norm_that_overflows_is_no_parameters_fault() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), 3e38)
    faults = Faults([("weight", parameter)], Ranks())
    faults.after(Piece("task", torch.tensor(1.0)))
    assert faults.found() == "the norm of the gradient"
    parameter.grad[1] = math.inf
    assert faults.found() == "the gradient of weight"


def test_losses_are_added_up_and_forgotten() -> None:
    faults = Faults([("weight", torch.nn.Parameter(torch.zeros(2)))], Ranks())
    assert faults.loss().tolist() == [0]
    for value in (1.0, 2.5):
        faults.after(Piece("task", torch.tensor(value, requires_grad=True), 0))
    assert faults.loss().tolist() == [3.5]
    assert not faults.loss().requires_grad
    faults.begin(watch=False)
    assert faults.loss().tolist() == [0]
