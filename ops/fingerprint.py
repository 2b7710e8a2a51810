"""What kinds of calls are told apart by: asked of every argument on every call, so there is nothing here but the questions."""

from collections.abc import Iterable
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
