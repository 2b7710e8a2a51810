"""A call's arrays apart from all else, which JAX has to know while it traces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Place:
    """Stands for an array: the one of this number."""

    number: int


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """Arguments with a ``Place`` for each array."""

    values: tuple[Any, ...]

    def filled(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with arrays in their places."""
        return tuple([arrays[v.number] if isinstance(v, Place) else v for v in self.values])

    def number(self, position: int) -> int | None:
        """Which array an argument is, if it is one."""
        value = self.values[position]
        return value.number if isinstance(value, Place) else None


def split(values: Sequence[Any]) -> tuple[list[Any], Static]:
    """The arrays among the arguments of a call, and the rest."""
    arrays: list[Any] = []
    rest: list[Any] = []
    for value in values:
        if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
            rest.append(Place(len(arrays)))
            arrays.append(value)
        else:
            rest.append(tuple(value) if isinstance(value, list) else value)
    return arrays, Static(tuple(rest))
