import pytest
import torch

from flowopd.training.meter import Meter
from flowopd.training.ranks import Ranks


def test_means_over_all_samples_of_all_pieces() -> None:
    meter = Meter()
    meter.add("a", torch.tensor([1.0, 2.0, 3.0]))
    meter.add("a", torch.tensor([10.0]))
    meter.add("b", 5)
    meter.add("c", torch.tensor(2.5))
    assert meter.take(Ranks()) == {"a": 4.0, "b": 5.0, "c": 2.5}


def test_what_is_no_number_is_left_out() -> None:
    meter = Meter()
    meter.add("a", torch.tensor([1.0, float("nan"), 3.0]))
    meter.add("b", float("nan"))
    assert meter.take(Ranks()) == {"a": 2.0}


def test_taking_starts_anew() -> None:
    meter = Meter()
    meter.add("a", 1.0)
    meter.take(Ranks())
    assert meter.take(Ranks()) == {}
    meter.add("a", 3.0)
    assert meter.take(Ranks()) == {"a": 3.0}


def test_names_come_in_order() -> None:
    meter = Meter()
    for name in ("z", "a", "m"):
        meter.add(name, 1.0)
    assert list(meter.take(Ranks())) == ["a", "m", "z"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_numbers_of_any_type(dtype: torch.dtype) -> None:
    meter = Meter()
    meter.add("a", torch.tensor([1, 2], dtype=dtype))
    assert meter.take(Ranks()) == {"a": 1.5}
