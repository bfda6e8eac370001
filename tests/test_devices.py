"""Which device a name means."""

import pytest
import torch

from flowopd.devices import pick_device
from flowopd.errors import FlowOPDError


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("rank", "number"), [("0", 0), ("3", 3), ("5", 1)])
def test_a_launchers_process_has_its_own(
    monkeypatch: pytest.MonkeyPatch, rank: str, number: int
) -> None:
    """By its number: a thread that begins later knows no current device but the first."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device("auto") == torch.device("cuda", number)
    assert pick_device("cuda") == torch.device("cuda", number)


@pytest.mark.usefixtures("four_gpus")
def test_one_alone_has_the_current_one() -> None:
    assert pick_device("auto") == torch.device("cuda")


def test_what_is_not_here_is_refused() -> None:
    with pytest.raises(FlowOPDError, match=r"'gpu' cannot be used here: .* Use auto, cpu"):
        pick_device("gpu")
