"""Which of torch's attention kernels a diffusers transformer uses.

diffusers' own `set_attention_backend` leaves the attention processors of the SD3 family as they
are, in silence, so the choice is made around the processors' call of torch.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flowopd.errors import FlowOPDError

AttentionBackend = Literal["flash", "efficient", "cudnn", "math"]

KERNELS: dict[AttentionBackend, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class PinnedAttention:
    """An attention processor that lets torch use one kernel only.

    The kernel is chosen inside each attention layer, so that what gradient checkpointing
    recomputes during the backward pass uses the same one.
    """

    def __init__(self, processor: Callable[..., Any], backend: AttentionBackend) -> None:
        self.processor = processor
        self.backend = backend

    def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(KERNELS[self.backend]):
            return self.processor(attn, *args, **kwargs)


def pin_attention(
    transformer: Any, backend: AttentionBackend, device: torch.device, dtype: torch.dtype
) -> None:
    """Make every attention layer of the transformer use the backend, or say why it cannot.

    `device` and `dtype` are those in which it will compute, wherever and in whatever precision its
    weights are kept.
    """
    _try_out(backend, transformer.config.attention_head_dim, device, dtype)
    pinned = {
        name: PinnedAttention(processor, backend)
        for name, processor in transformer.attn_processors.items()
    }
    transformer.set_attn_processor(pinned)


def _try_out(
    backend: AttentionBackend, head_dim: int, device: torch.device, dtype: torch.dtype
) -> None:
    query = torch.zeros(1, 1, 16, head_dim, device=device, dtype=dtype)
    try:
        with sdpa_kernel(KERNELS[backend]):
            scaled_dot_product_attention(query, query, query)
    except RuntimeError as error:
        raise FlowOPDError(
            f"The attention backend {backend!r} does not run on {device} in {dtype} with heads of "
            f"{head_dim}: {error} Leave attention_backend out, or use one of "
            f"{', '.join(get_args(AttentionBackend))}."
        ) from error
