"""The moving average by hand-computed values."""

import pytest
import torch
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.policy.ema import EMA


def one_parameter(value: float) -> tuple[nn.Parameter, list[tuple[str, nn.Parameter]]]:
    parameter = nn.Parameter(torch.tensor([value, 2 * value]))
    return parameter, [("w", parameter)]


def assign(parameter: nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor([value, 2 * value]))


def test_two_updates_by_hand() -> None:
    parameter, named = one_parameter(1.0)
    ema = EMA(named, decay=0.9)
    assign(parameter, 2.0)
    assert ema.update(1)
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([1.1, 2.2]))
    assign(parameter, -1.0)
    assert ema.update(2)
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([0.89, 1.78]))


def test_only_every_eighth_step_counts() -> None:
    parameter, named = one_parameter(0.0)
    ema = EMA(named, decay=0.5, every=8)
    assign(parameter, 1.0)
    moved = [step for step in range(1, 25) if ema.update(step)]
    assert moved == [8, 16, 24]
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([0.875, 1.75]))


def test_decay_zero_is_the_parameter_itself() -> None:
    parameter, named = one_parameter(1.0)
    ema = EMA(named, decay=0.0)
    assign(parameter, 5.0)
    ema.update(1)
    assert torch.equal(ema.state_dict()["w"], parameter.detach())


def test_swapped_shows_the_average_and_restores_even_after_an_exception() -> None:
    parameter, named = one_parameter(1.0)
    ema = EMA(named)
    assign(parameter, 2.0)
    before = parameter.detach().clone()
    with ema.swapped():
        assert torch.equal(parameter.detach(), torch.tensor([1.0, 2.0]))
        assert parameter.requires_grad
        assign(parameter, 7.0)
    assert torch.equal(parameter.detach(), before)
    assert torch.equal(ema.state_dict()["w"], torch.tensor([1.0, 2.0]))
    with pytest.raises(ZeroDivisionError), ema.swapped():
        raise ZeroDivisionError
    assert torch.equal(parameter.detach(), before)


def test_nothing_else_happens_while_swapped() -> None:
    _, named = one_parameter(1.0)
    ema = EMA(named)
    with ema.swapped():
        with pytest.raises(FlowOPDError, match="Cannot update"):
            ema.update(1)
        with pytest.raises(FlowOPDError, match="Cannot swap"), ema.swapped():
            pass
        assert torch.equal(ema.state_dict()["w"], torch.tensor([1.0, 2.0]))


def test_half_precision_parameters_have_a_float32_average() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA([("w", parameter)], decay=0.999)
    with torch.no_grad():
        parameter.fill_(2.0)
    ema.update(1)
    torch.testing.assert_close(ema.state_dict()["w"], torch.tensor([1.001]))


def test_state_round_trip_continues_bit_for_bit() -> None:
    parameter, named = one_parameter(1.0)
    first = EMA(named, decay=0.7)
    assign(parameter, 3.3)
    first.update(1)
    second = EMA(named, decay=0.7)
    second.load_state_dict(first.state_dict())
    assign(parameter, -0.1)
    first.update(2)
    second.update(2)
    assert torch.equal(first.state_dict()["w"], second.state_dict()["w"])


def test_bad_use_is_refused() -> None:
    _, named = one_parameter(1.0)
    with pytest.raises(FlowOPDError, match=r"not 1\.0"):
        EMA(named, decay=1.0)
    with pytest.raises(FlowOPDError, match="not every 0"):
        EMA(named, every=0)
    with pytest.raises(FlowOPDError, match="given none"):
        EMA([])
    with pytest.raises(FlowOPDError, match=r"2 differ in name or shape \(v, w\)"):
        EMA(named).load_state_dict({"v": torch.zeros(2)})
