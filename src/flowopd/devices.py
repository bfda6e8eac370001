"""Which device a configuration means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device of that name, if it is here; ``auto`` is a GPU if there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FlowOPDError(
            f"The device {name!r} cannot be used here: {reason} Use auto, cpu, cuda or cuda:1."
        ) from None
    return device
