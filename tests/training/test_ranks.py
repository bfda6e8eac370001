"""What is said where processes cannot work together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.training.interrupt import Interrupted
from flowopd.training.ranks import Ranks, _together, named_process
from flowopd.training.trainer import Trainer


def test_a_transfer_that_breaks_is_the_end_of_another_process() -> None:
    with pytest.raises(FlowOPDError, match="the same command goes on"), _together():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:6000")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("other")])
def test_other_errors_are_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), _together():
        raise error


@pytest.mark.parametrize(("count", "said"), [("1", "broken"), ("8", "process 3 of 8: broken")])
def test_an_error_names_its_process(count: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(FlowOPDError) as caught, named_process():
        raise FlowOPDError("broken")
    assert str(caught.value) == said
    with pytest.raises(Interrupted, match=r"^ended"), named_process():
        raise Interrupted("ended")


def test_each_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FlowOPDError, match="3 processes were started on a machine with 2 GPUs"):
        Ranks()


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where accelerate knows no way between the devices of a machine."""
    Ranks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FlowOPDError, match=r"2 processes were started, which cannot work together"):
        Ranks()


def test_one_process_is_the_identity() -> None:
    ranks = Ranks()
    tensor = torch.ones(3)
    ranks.add([tensor])
    ranks.wait()
    assert tensor.tolist() == [1, 1, 1]
    assert ranks.collect("a") == ["a"]
    assert ranks.gather(tensor)[1] == slice(0, 3)
    assert ranks.mine([1, 2]) == [1, 2]
    assert ranks.any(True)
    assert not ranks.any(False)


def test_checkpoints_that_differ_end_the_run() -> None:
    class Two:
        def collect(self, value: Any) -> list[Any]:
            return [value, 4]

    agree: Callable[[Any, Any], None] = Trainer._agree

    class Stub:
        class context:  # noqa: N801
            ranks = Two()

        class checkpoints:  # noqa: N801
            folder = "here"

    with pytest.raises(FlowOPDError, match=r"different checkpoints in here \(of the updates none"):
        agree(Stub, None)
