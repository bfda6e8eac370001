"""Attention as a GPU does it: never the matrix of all tokens by all tokens.

On the meta device torch would compute attention by its plain formula, which keeps that matrix.
Inside `fused_attention` it runs the operator that a GPU would choose, by its shapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from flowopd.policy.attention import AttentionBackend

LONGEST_FLASH_HEAD = 256
aten = torch.ops.aten


@contextmanager
def fused_attention(backend: AttentionBackend | None = None) -> Iterator[None]:
    """Attention inside is that of a GPU: of one backend, or (None) of torch's choice."""
    if backend == "math":
        yield
        return

    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        mask = rest[0] if rest else options.get("attn_mask")
        if len({one.dtype for one in (query, key, value)}) > 1:  # as autocast has it
            lowest = min((one.dtype for one in (query, key, value)), key=lambda kind: kind.itemsize)
            query, key, value = (one.to(lowest) for one in (query, key, value))
        causal = bool(options.get("is_causal", rest[2] if len(rest) > 2 else False))
        if query.device.type == "cpu":
            return _first(
                aten._scaled_dot_product_flash_attention_for_cpu(
                    query, key, value, 0.0, causal, attn_mask=mask
                )
            )
        halves = query.dtype in (torch.bfloat16, torch.float16)
        flash = halves and query.shape[-1] <= LONGEST_FLASH_HEAD and mask is None
        if flash and backend != "efficient":
            return _first(aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal))
        kept = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        return _first(
            aten._scaled_dot_product_efficient_attention(query, key, value, mask, kept, 0.0, causal)
        )

    with patch("torch.nn.functional.scaled_dot_product_attention", attend):
        yield


def _first(results: tuple[Any, ...]) -> Tensor:
    attended: Tensor = results[0]
    return attended
