"""torch.compile of a transformer's blocks, one by one: blocks of one kind share their code."""

from collections.abc import Iterable
from typing import Any

from torch import nn

KINDS = 64
"""How many versions of a block's code there may be: for each kind of block (with a second
attention, without, the last), without an adapter, with one, with one that is folded, with a
gradient and without, at a fixed size of batch and at any. torch's own limit is 8, beyond which it
would go on uncompiled."""


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Any = "inductor") -> None:
    """Compile each block at its first use.

    Adapters lie in the slots of LoraLinear, so that switching them compiles nothing anew.
    """
    import torch._dynamo

    settings: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, max(KINDS, getattr(settings, name)))
    for block in blocks:
        block.compile(backend=backend)
