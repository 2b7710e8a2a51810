"""What cross-entropy takes: checks, and the rows that its kernels see."""

from typing import Any

import torch

from kpt.ops import checks, softcap
from kpt.ops.backends import as_matrix, wide_dtype
from kpt.ops.dtypes import FLOATS

OP = "cross_entropy"

REDUCTIONS = ("mean", "sum", "none")
INDICES = (torch.int64, torch.int32)
"""Types of targets that are classes."""

LARGEST_INT = 2**31 - 1


def check(
    x: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any, label_smoothing: Any, z_loss: Any, cap: Any,
    return_lse: Any, return_count: Any = None,
) -> None:  # fmt: skip
    """Raises InputError unless the arguments are those of ``cross_entropy``."""
    checks.tensor(OP, "input", x)
    if x.ndim == 0:
        checks.reject(OP, "input", "of rank 0", "(C,), (N, C) or (N, C, d1, ...)")
    checks.dtype(OP, "input", x.dtype, FLOATS)
    check_targets(OP, x, target, rows_shape(x))
    if weight is not None:
        checks.shape(OP, "weight", weight, (x.shape[min(1, x.ndim - 1)],), "(C,)")
        checks.same_dtype(OP, "input", x, weight=weight)
        checks.same_device(OP, "input", x, weight=weight)
    check_options(OP, ignore_index, reduction, label_smoothing, z_loss, cap)
    checks.flag(OP, "return_lse", return_lse)


def check_targets(op: str, x: torch.Tensor, target: Any, shape: tuple[int, ...]) -> None:
    """Raises InputError unless targets are classes of that shape, or probabilities of the shape of x."""
    checks.tensor(op, "target", target)
    if target.is_floating_point():
        checks.shape(op, "target", target, x.shape, "classes, or of the shape of input")
    else:
        checks.dtype(op, "target", target.dtype, INDICES)
        checks.shape(op, "target", target, shape, "one class a row")
    checks.same_device(op, "input", x, target=target)


def check_options(op: str, ignore_index: Any, reduction: Any, label_smoothing: Any, z_loss: Any, cap: Any) -> None:
    """Raises InputError unless these are what every kind of cross-entropy takes."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        checks.reject(op, "ignore_index", repr(ignore_index), "a whole number")
    if reduction not in REDUCTIONS:
        checks.reject(op, "reduction", repr(reduction), ", ".join(REDUCTIONS))
    checks.number(op, "label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        checks.reject(op, "label_smoothing", repr(label_smoothing), "a number from 0 to 1")
    checks.number(op, "z_loss", z_loss)
    softcap.check(op, cap)


def why_not(
    x: torch.Tensor, target: torch.Tensor, weight: Any, ignore_index: int, cap: float | None
) -> str | None:
    """Why kernels pass a call over, or None."""
    if weight is not None:
        return "classes have weights"
    if target.is_floating_point():
        return "targets are probabilities"
    if not -LARGEST_INT <= ignore_index <= LARGEST_INT:
        return "ignore_index does not fit 32 bits"
    if x.ndim > 2 and not x.movedim(1, -1).is_contiguous():
        return "the classes of a row do not lie side by side"
    return softcap.why_not(cap) or wide_dtype(x)


def loss_dtype(x: torch.Tensor) -> torch.dtype:
    """Of losses and log-sum-exps."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_shape(x: torch.Tensor) -> tuple[int, ...]:
    """The shape of what has one element for each row of classes."""
    return (*x.shape[:1], *x.shape[2:]) if x.ndim > 1 else ()


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """The logits as (rows, classes)."""
    return as_matrix(x.movedim(1, -1) if x.ndim > 2 else x, x.shape[min(1, x.ndim - 1)])
