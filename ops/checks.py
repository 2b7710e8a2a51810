"""Input checks: each raises InputError that names the op, the argument, what it was, and what is accepted.

They run when a call is seen for the first time (and while tracing), never on the warm path; no check reads a tensor's values.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from kpt_dsl.errors import InputError


def reject(op: str, argument: str, was: str, accepted: str) -> NoReturn:
    """Refuse an argument."""
    raise InputError(f"{op}: {argument} is {was}; accepted: {accepted}")


def shape_of(tensor: torch.Tensor) -> str:
    """A tensor's shape as people write it: ``of shape (2, 3)``."""
    return f"of shape ({', '.join(str(n) for n in tensor.shape)}{',' if tensor.ndim == 1 else ''})"


def tensor(op: str, argument: str, value: Any, accepted: str = "a torch.Tensor") -> None:
    """A torch tensor it must be."""
    if not isinstance(value, torch.Tensor):
        reject(op, argument, f"{value!r} ({type(value).__name__})", accepted)


def rank(op: str, argument: str, value: torch.Tensor, ranks: Sequence[int], accepted: str) -> None:
    """A tensor of one of these ranks."""
    tensor(op, argument, value, f"a torch.Tensor: {accepted}")
    if value.ndim not in ranks:
        reject(op, argument, f"{shape_of(value)}, rank {value.ndim}", accepted)


def shape(op: str, argument: str, value: torch.Tensor, extents: Sequence[int], accepted: str) -> None:
    """A tensor of exactly this shape."""
    tensor(op, argument, value, f"a torch.Tensor: {accepted}, here {tuple(extents)}")
    if tuple(value.shape) != tuple(extents):
        reject(op, argument, shape_of(value), f"{accepted}, here {tuple(extents)}")


def dtype(op: str, argument: str, found: torch.dtype, accepted: Sequence[torch.dtype]) -> None:
    """A dtype out of these."""
    if found not in accepted:
        reject(op, argument, f"of dtype {found}", ", ".join(str(t) for t in accepted))


def same_dtype(op: str, first: str, value: torch.Tensor, **others: torch.Tensor | None) -> None:
    """All tensors have the first one's dtype."""
    for argument, other in others.items():
        if other is not None and other.dtype != value.dtype:
            reject(op, argument, f"of dtype {other.dtype}", f"the dtype of {first}, {value.dtype}")


def same_device(op: str, first: str, value: torch.Tensor, **others: torch.Tensor | None) -> None:
    """All tensors are on the first one's device."""
    for argument, other in others.items():
        if other is not None and other.device != value.device:
            reject(op, argument, f"on {other.device}", f"the device of {first}, {value.device}")


def flag(op: str, argument: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        reject(op, argument, f"{value!r} ({type(value).__name__})", "True or False")


def number(op: str, argument: str, value: Any) -> None:
    """A Python number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        reject(op, argument, f"{value!r} ({type(value).__name__})", "a number")
