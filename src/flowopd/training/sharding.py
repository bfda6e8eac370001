"""FSDP2 for networks that are trained as a whole: tensors in shares, and whole again."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def shard(transformer: nn.Module, processes: int, device: torch.device, dtype: torch.dtype) -> None:
    """Leave every process its share of each parameter; blocks are gathered one at a time.

    What is gathered is dropped after every forward, so that whoever looks at the parameters between
    calls, as averages and checkpoints do, finds the shares.
    Parameters stay float32, are gathered in `dtype`, and their gradients are summed in float32.
    Inputs are not touched: noise levels keep their float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    lower = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(
        param_dtype=lower, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = init_device_mesh(device.type, (processes,))
    blocks = [block for part in transformer.children() if isinstance(part, nn.ModuleList)
              for block in part]  # fmt: skip
    for module in [*blocks, transformer]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """All shares of a tensor together, if it is in shares; every process takes part."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def one_by_one(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor whole, for as long as it is looked at.

    Where tensors are in shares, all processes go through all of them, in one order.
    """
    for key, tensor in tensors.items():
        yield key, whole(tensor)


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in shares as another one is, if that is in shares."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    mesh: Any = like.device_mesh
    placed: Tensor = distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements)
    return placed
