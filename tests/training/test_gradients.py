"""Taking a gradient apart by task, and the cosine between the parts."""

import math
from collections.abc import Sequence

import pytest
import torch

from flowopd.training.gradients import TaskGradients, interference
from flowopd.training.ranks import Ranks


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 3), (4,))]


def push(parameters: list[torch.nn.Parameter], *amounts: float) -> torch.Tensor:
    """Add a gradient to each parameter; all of it, flat."""
    gradients = [torch.full_like(p, amount) for p, amount in zip(parameters, amounts, strict=True)]
    sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True)).backward()
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def test_pieces_in_turn_are_added_up_by_task() -> None:
    found = parameters()
    gradients = TaskGradients(found)
    expected = {"a": torch.zeros(10), "b": torch.zeros(10)}
    for task, amounts in [("a", (1, 2)), ("b", (-3, 0)), ("a", (4, 8)), ("b", (0.5, 1))]:
        expected[task] += push(found, *amounts)
        gradients.after(task)
    for task, gradient in expected.items():
        torch.testing.assert_close(gradients.of(task), gradient)
    assert gradients.of("c").tolist() == [0] * 10


def test_what_was_there_before_is_nobodys() -> None:
    found = parameters()
    push(found, 7, 7)
    gradients = TaskGradients(found)
    mine = push(found, 1, 1)
    gradients.after("a")
    torch.testing.assert_close(gradients.of("a"), mine)


def test_a_parameter_without_a_gradient_counts_as_zero() -> None:
    found = parameters()
    gradients = TaskGradients(found)
    found[0].sum().backward()
    gradients.after("a")
    assert gradients.of("a").tolist() == [1] * 6 + [0] * 4


def test_it_does_not_touch_the_gradient() -> None:
    found = parameters()
    gradients = TaskGradients(found)
    push(found, 1, 2)
    gradients.after("a")
    push(found, 1, 2)
    gradients.after("b")
    interference(gradients, ["a", "b"], Ranks())
    assert found[0].grad is not None
    assert found[1].grad is not None
    assert found[0].grad.tolist() == [[2] * 3] * 2
    assert found[1].grad.tolist() == [4] * 4


class TestInterference:
    def cosines(self, **amounts: tuple[float, float]) -> dict[str, float]:
        found = parameters()
        gradients = TaskGradients(found)
        for task, own in amounts.items():
            push(found, *own)
            gradients.after(task)
        return interference(gradients, list(amounts), Ranks())

    def test_together_against_and_across(self) -> None:
        cosines = self.cosines(a=(1, 0), b=(5, 0), c=(-2, 0), d=(0, 3))
        expected = {"a|b": 1, "a|c": -1, "a|d": 0, "b|c": -1, "b|d": 0, "c|d": 0}
        assert cosines == pytest.approx(expected, abs=1e-6)

    def test_by_hand(self) -> None:
        """(1, 2) and (3, -1) on 6 and 4 numbers: (6 * 3 - 4 * 2) / sqrt(22 * 58)."""
        cosine = self.cosines(a=(1, 2), b=(3, -1))["a|b"]
        assert cosine == pytest.approx(10 / math.sqrt(22 * 58), rel=1e-5)

    def test_a_task_without_a_gradient_has_no_cosine(self) -> None:
        assert self.cosines(a=(1, 1), b=(0, 0)) == {}
        assert list(self.cosines(a=(1, 1), b=(0, 0), c=(1, 1))) == ["a|c"]

    def test_the_sum_over_processes_is_not_added_to_a_process_own_part(self) -> None:
        class Two(Ranks):
            def add(self, tensors: Sequence[torch.Tensor]) -> None:
                for tensor in tensors:
                    tensor.mul_(2)

        found = parameters()
        gradients = TaskGradients(found)
        own = push(found, 1, 2)
        gradients.after("a")
        interference(gradients, ["a", "b"], Two())
        torch.testing.assert_close(gradients.of("a"), own)

    def test_the_order_is_that_of_the_tasks(self) -> None:
        assert list(self.cosines(z=(1, 1), a=(1, 1))) == ["z|a"]
