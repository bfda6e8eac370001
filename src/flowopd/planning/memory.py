"""The bytes that tensors hold while code runs, counted without a device.

The meta device stands for the GPU: tensors there have shapes and no numbers, so that a network of
any size runs in seconds. Where code reads a number off such a tensor it is told 1.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowopd.planning.shapes import Remembered

GRAIN = 512
"""What CUDA's allocator rounds every tensor up to."""
aten = torch.ops.aten
_remembered = Remembered()


@dataclass
class Watch:
    """What happened since it was begun."""

    start: int
    """The bytes alive when it began."""
    peak: int
    """The most bytes alive since."""

    @property
    def above(self) -> int:
        return self.peak - self.start


class LiveMemory(TorchDispatchMode):
    """While it is entered, counts what new tensors on `device` hold, until they are freed.

    Tensors from before count nothing, and neither does what operators use within themselves, but
    for those of WORKSPACES.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.phase = ""
        self.peaks: dict[str, int] = {}
        """The most bytes alive in each phase."""
        self._device = device
        self._known: dict[int, weakref.ref[Any]] = {}
        self._watches: list[Watch] = []
        self._masks = ExitStack()
        """Where a mask selects, it selects all."""

    def __enter__(self) -> Self:
        patch: Any = _config.patch  # type: ignore[attr-defined]
        self._masks.enter_context(patch(meta_nonzero_assume_all_nonzero=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._masks.close()

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """What is alive, from here to the end of the block."""
        watch = Watch(self.live, self.live)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Peaks inside are of this phase."""
        before, self.phase = self.phase, phase
        self.reach(0)
        try:
            yield
        finally:
            self.phase = before

    def reach(self, extra: int) -> None:
        """Note that for a moment `extra` bytes were alive beside what is."""
        total = self.live + extra
        self.peak = max(self.peak, total)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), total)
        for watch in self._watches:
            watch.peak = max(watch.peak, total)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        answer = _READS.get(func)
        if answer is not None and (told := answer(args, kwargs)) is not None:
            return told
        key = _remembered.key(func, args, kwargs) if self._device == "meta" else None
        out = None if key is None else _remembered.recall(key)
        if out is not None:
            self._count(out, ())
        else:
            out = func(*args, **kwargs)
            given = [*tree_leaves(args), *tree_leaves(kwargs)]
            if self._count(out, given) and key is not None:
                _remembered.keep(key, out)
        if func in WORKSPACES:
            self.reach(WORKSPACES[func](*args))
        return out

    def _count(self, out: Any, given: Sequence[Any]) -> bool:
        """Storages among the results that are no argument's are new; whether all of them are."""
        arguments: set[int] | None = None
        all_new = True
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if arguments is None:
                found = (one for one in given if isinstance(one, Tensor))
                arguments = {one.untyped_storage()._cdata for one in found}
            if storage._cdata in arguments:
                all_new = False
            elif storage._cdata not in self._known and tensor.device.type == self._device:
                self._add(storage._cdata, storage)
        return all_new

    def _add(self, key: int, storage: Any) -> None:
        size = rounded(storage.nbytes())

        def freed(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.reach(0)


def rounded(size: int) -> int:
    """What CUDA's allocator gives out for a tensor of so many bytes."""
    return -(-size // GRAIN) * GRAIN


def _flash_backward(grad: Tensor, query: Tensor, *_: Any) -> int:
    """The gradient of the queries, summed up in float32 before it is rounded."""
    return 4 * query.numel()


WORKSPACES: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
}
"""Operators that use much memory within themselves on a GPU, and how much, by their arguments."""


def _number(args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    tensor = args[0]
    if not tensor.is_meta:
        return None
    if tensor.dtype is torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _brought(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """A tensor that is copied to the CPU."""
    tensor, device = args[0], kwargs.get("device")
    if not tensor.is_meta or device is None or torch.device(device).type != "cpu":
        return None
    return torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)


def _copied(args: tuple[Any, ...], _: Mapping[str, Any]) -> Tensor | None:
    target, source = args[:2]
    return target if source.is_meta and not target.is_meta else None


_READS: Mapping[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], Any]] = {
    aten._local_scalar_dense.default: _number,
    aten._to_copy.default: _brought,
    aten.copy_.default: _copied,
    aten.equal.default: lambda args, _: True if args[0].is_meta else None,
}
"""Operators that read numbers, and what they are told where there are none (None: there are)."""
