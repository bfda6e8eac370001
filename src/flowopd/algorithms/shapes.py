"""Shapes are checked where a loss begins: `[B, 1]` times `[B]` would silently be `[B, B]`."""

from torch import Tensor

from flowopd.errors import FlowOPDError


def check_samples(batch: int, **tensors: Tensor) -> None:
    """Every tensor is one number a sample, `[B]`."""
    for name, tensor in tensors.items():
        if tensor.shape != (batch,):
            raise FlowOPDError(
                f"{name} has shape {list(tensor.shape)}; it must be one number for each of the "
                f"{batch} samples, [{batch}]."
            )


def check_same(**tensors: Tensor) -> None:
    """All tensors have one shape, with a batch and dimensions: `[B, ...]`."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({tuple(shape) for shape in shapes.values()}) != 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise FlowOPDError(f"These must have one shape, and have: {found}.")
    if any(len(shape) < 2 for shape in shapes.values()):
        raise FlowOPDError(f"{', '.join(shapes)} must be [B, ...], one array a sample.")


def mean_square(difference: Tensor) -> Tensor:
    """`mean_D` of the square, `[B]`."""
    return difference.square().flatten(1).mean(1)
