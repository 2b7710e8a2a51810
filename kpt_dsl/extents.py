"""The numbers of a call: how long dims are, and how tensors lie in memory. Knows no kernel and no element type."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Extents:
    """What may change with every call of a specialisation.

    ``dims``: every symbolic dim -> extent. ``strides``: tensor -> strides in elements. ``aligned``: the tensors whose base
    address is 16-byte aligned.
    """

    dims: tuple[tuple[str, int], ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    aligned: frozenset[str]

    def dim(self, name: str) -> int:
        """Extent of a dim."""
        return self._dims[name]

    def shape(self, dims: Iterable[str]) -> tuple[int, ...]:
        """Extents of a tensor that has these dims."""
        return tuple([self._dims[dim] for dim in dims])

    def stride(self, tensor: str) -> tuple[int, ...]:
        """Strides of a present tensor, in elements."""
        return self._strides[tensor]

    # What a launch of every new length asks for, over and over.
    @cached_property
    def _dims(self) -> dict[str, int]:
        return dict(self.dims)

    @cached_property
    def _strides(self) -> dict[str, tuple[int, ...]]:
        return dict(self.strides)
