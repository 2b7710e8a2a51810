"""What kinds of calls are told apart by: asked of every argument on every call, so there is nothing here but the questions."""

from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch

from kpt.ops.eager import PLAIN, WORDS

Fingerprint = tuple[tuple[Any, ...], ...]


_ABSENT = (type(None), None)
"""What most arguments of attention are."""


class Foreign(Exception):
    """An argument is not of the kinds that kernels take: neither a tensor with memory and strides nor Python's."""


def fingerprint(arguments: tuple[Any, ...]) -> Fingerprint:
    """What a decision depends on: each tensor's layout, type, device, alignment, need of grad and lazy negation; each other
    argument with its type, as 1 and True are equal.

    Raises Foreign, or RuntimeError where a tensor has no strides or memory to ask for (sparse, nested, mkldnn).
    """
    return tuple(
        [
            _ABSENT
            if a is None
            else (a.shape, a.stride(), a.dtype, a.device, (p := a.data_ptr()) and p & 15 | 16, a.requires_grad, a.is_neg())
            if (kind := type(a)) in PLAIN
            else (kind, a)
            if kind in WORDS
            else _unusual(a)
            for a in arguments
        ]
    )


def is_of_tensor(part: tuple[Any, ...]) -> bool:
    """Whether a part of a fingerprint was taken of a tensor: it begins with shape, strides, dtype and device then."""
    return bool(part) and type(part[0]) is torch.Size


def without_lengths(told: Fingerprint, lengths: Mapping[int, slice]) -> Hashable | None:
    """The fingerprint of a call but for extents of two and more along some dims of its tensors, by their positions, of which it
    says which are equal; and but for strides and alignment.

    None where there are tensors of other positions, or where such an extent is that of another dim as well, or one of the
    numbers: then it may have to be.
    """
    places: dict[int, int] = {}
    others: set[Any] = set()
    parts = list(told)
    for position, dims in lengths.items():
        if is_of_tensor(part := told[position]):
            shape = tuple(part[0])
            fixed = shape[: dims.start] + shape[dims.stop :]
            others.update(fixed)
            alike = tuple([~places.setdefault(n, len(places)) if n > 1 else n for n in shape[dims]])
            parts[position] = (alike, fixed, part[2], part[3], part[5])
    for position, part in enumerate(told):
        if part is not _ABSENT and position not in lengths:
            if is_of_tensor(part):
                return None
            others.update(part)
    return tuple(parts) if others.isdisjoint(places) else None


def _unusual(value: Any) -> Any:
    """What is neither a plain tensor nor a plain word: sequences as tuples, whatever they are."""
    kind = type(value)
    if kind is tuple and len(value) == 1 and type(value[0]) is int:  # the shape of most norms
        return value
    if kind is tuple or kind is list or kind is torch.Size:
        return (*map(type, value), *value)
    if hasattr(kind, "__torch_function__") or is_numpys(value):
        raise Foreign
    return kind, value


def of_python(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """The arguments with Python's numbers for NumPy's, which PyTorch takes for numbers too."""
    return tuple([a.item() if is_numpys(a) else a for a in arguments])


def is_numpys(value: Any) -> bool:
    """Whether it is a number, but none of Python's."""
    return isinstance(value, Real) and hasattr(value, "dtype")
