"""A residual addition and the RMS norm of its sum: public function, checks, the kernel call, and what autograd is told."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import fakes, norms
from kpt.ops.add_rms_norm import reference
from kpt.ops.add_rms_norm.shapes import SHAPES, arguments
from kpt.ops.autocast import as_pytorchs
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.library import define
from kpt.ops.norms import ROWS
from kpt.ops.registry import WHOLE, Gradient, Op, Ready
from kpt.ops.rms_norm.backward import check_numbers, rms_norm_backward
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt.ops.rms_norm.reference import resolved_eps
from kpt.ops.rms_norm.shapes import DIMS

OP = "add_rms_norm"


def add_rms_norm(
    input: torch.Tensor,  # noqa: A002 (the name it has in torch.nn.functional)
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    weight_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum = input + residual``, and ``rms_norm(sum, normalized_shape, weight, eps, weight_offset)``, in one pass over memory.

    ``input``, ``residual``: (..., *normalized_shape), of one dtype, to which the sum is rounded before its norm is taken, as
    two calls would. The other arguments are those of ``rms_norm``. Gives (norm, sum), both contiguous, of the shape and dtype
    of ``input``: the sum is the residual of what comes next. Under autocast on a GPU both are float32. Raises InputError for
    arguments that do not fit.
    """
    y, total = _dispatch(input, residual, norms.as_shape(normalized_shape), weight, eps, weight_offset)
    return y, total


def _check(x: Any, residual: Any, normalized_shape: Any, weight: Any, eps: Any, weight_offset: Any) -> None:
    norms.check_norm(OP, x, normalized_shape, any_dtype=True, weight=weight)
    norms.check_sum(OP, x, residual)
    check_numbers(OP, weight, eps, weight_offset)


def _run(
    launch: Launch,
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    weight_offset: float,
) -> list[torch.Tensor]:
    width = math.prod(normalized_shape)
    rows, beside = as_matrix(x, width), as_matrix(residual, width)
    y, total = (torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(2))
    flat = None if weight is None else weight.reshape(width)
    launch(rms_norm_fwd, rows, flat, y, resolved_eps(x.dtype, eps), weight_offset or None, beside, total)
    return [y.view(x.shape), total.view(x.shape)]


def _forward(
    dispatch: Ready, needed: Sequence[bool], x: torch.Tensor, residual: torch.Tensor, *others: Any
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    y, total = dispatch(x, residual, *others)
    return [y, total], (total, *others)


def _backward(
    saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor | None, dtotal: torch.Tensor | None
) -> Sequence[torch.Tensor | None]:
    total, shape, weight, eps, offset = saved
    return norms.gradients_of_sum(
        needed, dy, dtotal,
        lambda slopes, wanted: rms_norm_backward(slopes, total, shape, weight, eps, wanted, offset, dtotal),
    )  # fmt: skip


_dispatch = define(
    Op(
        public=add_rms_norm,
        reference=reference.add_rms_norm,
        fake=lambda x, *_: [fakes.like_first(x), fakes.like_first(x)],
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"input": slice(0, -1), "residual": slice(0, -1), "weight": slice(0, 0)},
        autocast=as_pytorchs("rms_norm", "float32"),
        gradient=Gradient(("input", "residual", "weight"), _forward, _backward),
        shardings=lambda _, x, residual, shape, *__: norms.shardings(
            x, shape, (ROWS, ROWS), (ROWS, ROWS, None, WHOLE, None, None)
        ),
        schema="(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, float? eps, float weight_offset)"
        " -> Tensor[]",
    )
)
