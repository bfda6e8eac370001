"""Which device a configuration means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device of that name, if it is here; ``auto`` is a GPU if there is one.

    Of several GPUs it is the one that is this process's by its launcher: in every thread of it,
    which a device without a number would not be.
    """
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        number = int(os.environ["LOCAL_RANK"])
        return torch.device("cuda", number % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FlowOPDError(
            f"The device {name!r} cannot be used here: {reason} Use auto, cpu, cuda or cuda:1."
        ) from None
    return device
