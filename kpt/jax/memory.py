"""What tensors without memory stand for: JAX arrays, by the storage that the tensors share.

A tensor on the device meta has a shape, strides and a storage, so views of it are views here too: reading one reads what was
last written to any other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from kpt_dsl.errors import InputError
from kpt_dsl.runtime.pallas import known_shape


def jax_dtype(known: torch.dtype) -> Any:
    """The dtype of JAX for one of PyTorch; what is 64 bits wide is 32 unless the user enabled the former."""
    return jax.dtypes.canonicalize_dtype(jnp.dtype(str(known).removeprefix("torch.")))


def torch_dtype(known: Any) -> torch.dtype:
    """The dtype of PyTorch for one of JAX or NumPy. Raises InputError where PyTorch has none."""
    found = getattr(torch, jnp.dtype(known).name, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype {jnp.dtype(known).name} is not one that kpt.jax takes")
    return found


@contextmanager
def unseen() -> Iterator[None]:
    """Within the block no mode that is on where kpt.jax is called, as torchax's, sees operations on tensors without memory."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


@unseen()
def tensor_like(array: Any) -> torch.Tensor:
    """A tensor of the shape and dtype of an array, without memory. Raises InputError for one whose lengths are left open."""
    return torch.empty(known_shape(array), dtype=torch_dtype(array.dtype), device="meta")


class Memory:
    """Arrays by storage."""

    def __init__(self) -> None:
        self._arrays: dict[int, jax.Array] = {}
        self._storages: list[torch.UntypedStorage] = []
        """Kept, so that no other storage gets the name of one that is gone."""

    def enter(self, array: Any) -> torch.Tensor:
        """A tensor that stands for an array."""
        tensor = tensor_like(array)
        self._put(tensor, array)
        return tensor

    def read(self, tensor: torch.Tensor) -> jax.Array:
        """What a tensor holds, to which something was written."""
        array = self._arrays[tensor.untyped_storage()._cdata]
        if _is_whole(tensor, array):
            return array.reshape(tensor.shape)
        view = _View(tensor, array.size)
        return view.of(array).astype(jax_dtype(tensor.dtype))

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether anything was written where a tensor lies."""
        return tensor.untyped_storage()._cdata in self._arrays

    def write(self, tensor: torch.Tensor, value: Any) -> None:
        """Let a tensor, and all views of what it lies in, hold a value: broadcast to its shape, rounded to its dtype."""
        value = jnp.broadcast_to(jnp.asarray(value), tensor.shape).astype(jax_dtype(tensor.dtype))
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        before = self._arrays.get(tensor.untyped_storage()._cdata)
        if tensor.is_contiguous() and tensor.numel() == size:
            self._put(tensor, value)
        else:
            held = jnp.zeros(size, value.dtype) if before is None else before
            self._put(tensor, _View(tensor, held.size).replaced(held, value))

    def _put(self, tensor: torch.Tensor, array: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._arrays:
            self._storages.append(storage)
        self._arrays[storage._cdata] = array


def _is_whole(tensor: torch.Tensor, array: jax.Array) -> bool:
    return tensor.is_contiguous() and tensor.numel() == array.size


class _View:
    """Where the elements of a strided tensor lie in a storage of so many.

    Axes from the largest stride to the smallest are slices of the storage's axes, if it is cut up by these strides; where
    strides do not divide one another, elements are gathered.
    """

    def __init__(self, tensor: torch.Tensor, size: int) -> None:
        self.shape = tuple(tensor.shape)
        self.strides = tensor.stride()
        self.offset = tensor.storage_offset()
        self.axes = sorted(
            (a for a, n in enumerate(self.shape) if n != 1 and self.strides[a]), key=lambda a: -self.strides[a]
        )
        self.cut = self._cut(size)

    def _cut(self, size: int) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
        """The extents of the axes that the storage is cut into, and what of each the view has."""
        steps = [size, *(self.strides[a] for a in self.axes)]
        rest, extents, places = self.offset, [], []
        for outer, inner, axis in zip(steps, steps[1:], self.axes, strict=False):
            extent, start = outer // inner, rest // inner
            if outer % inner or start + self.shape[axis] > extent:
                return None
            extents.append(extent)
            places.append(slice(start, start + self.shape[axis]))
            rest -= start * inner
        return (*extents, steps[-1]), (*places, rest)

    def of(self, array: jax.Array) -> jax.Array:
        """The view's elements."""
        if self.cut is None:
            return array.reshape(-1)[self._indices()]
        extents, places = self.cut
        found = array.reshape(extents)[places]
        order = sorted(self.axes)
        found = found.transpose([self.axes.index(a) for a in order])
        kept = [n if a in order else 1 for a, n in enumerate(self.shape)]
        return jnp.broadcast_to(found.reshape(kept), self.shape)

    def replaced(self, array: jax.Array, value: jax.Array) -> jax.Array:
        """The storage with the view's elements replaced."""
        if self.cut is None:
            return array.reshape(-1).at[self._indices()].set(value)
        extents, places = self.cut
        value = value.reshape([self.shape[a] for a in sorted(self.axes)])
        value = value.transpose([sorted(self.axes).index(a) for a in self.axes])
        if value.size == array.size:
            return value
        return array.reshape(extents).at[places].set(value)

    def _indices(self) -> Any:
        steps: Sequence[Any] = np.ix_(*[np.arange(n) * s for n, s in zip(self.shape, self.strides, strict=True)])
        return self.offset + sum(steps, np.zeros((), np.int32))
