"""Operators on the meta device, whose results are remembered.

torch works the shape of every result out in Python, and the blocks of a network ask it for the same
ones again and again.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEPENDS_ON_NUMBERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Shape(NamedTuple):
    """All that there is to a tensor without numbers."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


class Remembered:
    """What operators gave that make new tensors of arguments that are on the meta device."""

    def __init__(self) -> None:
        self._makes: dict[Any, bool] = {}
        self._results: dict[Hashable, tuple[Any, ...]] = {}

    def key(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable | None:
        """What the shapes of the results depend on; None where they depend on more."""
        makes = self._makes.get(func)
        if makes is None:
            makes = self._makes[func] = _makes_tensors(func)
        if not makes:
            return None
        try:
            return (func, _described(args), _described(kwargs.values()), tuple(kwargs))
        except _OtherDeviceError:
            return None

    def recall(self, key: Hashable) -> Any:
        """The results, made anew; None if the operator did not run yet."""
        found = self._results.get(key)
        if found is None:
            return None
        made = [one.tensor() if isinstance(one, Shape) else one for one in found]
        return made[0] if len(made) == 1 else tuple(made)

    def keep(self, key: Hashable, out: Any) -> None:
        """Of results that share no memory with the arguments."""
        results = out if isinstance(out, tuple) else (out,)
        alone = isinstance(out, tuple) and len(out) == 1
        if alone or not all(_is_plain(one) for one in results):
            return
        self._results[key] = tuple(
            _shape(one) if isinstance(one, Tensor) else one for one in results
        )


class _OtherDeviceError(Exception):
    """An argument has numbers."""


def _makes_tensors(func: Any) -> bool:
    """Whether the operator changes none of its arguments, and says that it returns none of them."""
    schema = func._schema
    aliases = [one.alias_info for one in (*schema.arguments, *schema.returns)]
    return not any(aliases) and not DEPENDS_ON_NUMBERS & set(func.tags)


def _is_plain(result: Any) -> bool:
    return result.is_meta if isinstance(result, Tensor) else isinstance(result, int | None)


def _described(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(_describe(value) for value in values)


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _OtherDeviceError
        return _shape(value)
    if isinstance(value, list | tuple):
        return _described(value)
    return (type(value), value)


def _shape(tensor: Tensor) -> Shape:
    return Shape(tensor.shape, tensor.stride(), tensor.dtype)
