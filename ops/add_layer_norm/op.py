"""A residual addition and the layer norm of its sum: public function, checks, the kernel call, and what autograd is told."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks, fakes, norms
from kpt.ops.add_layer_norm import reference
from kpt.ops.add_layer_norm.shapes import SHAPES, arguments
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.layer_norm.backward import layer_norm_backward
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.layer_norm.shapes import DIMS
from kpt.ops.library import define
from kpt.ops.norms import ROWS
from kpt.ops.registry import WHOLE, Gradient, Op, Ready

OP = "add_layer_norm"


def add_layer_norm(
    input: torch.Tensor,  # noqa: A002 (the name it has in torch.nn.functional)
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum = input + residual``, and ``layer_norm(sum, normalized_shape, weight, bias, eps)``, in one pass over memory.

    ``input``, ``residual``: (..., *normalized_shape), of one dtype, to which the sum is rounded before its norm is taken, as
    two calls would. The other arguments are those of ``layer_norm``. Gives (norm, sum), both contiguous, of the shape and dtype
    of ``input``: the sum is the residual of what comes next. Under autocast on a GPU both are float32. Raises InputError for
    arguments that do not fit.
    """
    y, total = _dispatch(input, residual, norms.as_shape(normalized_shape), weight, bias, eps)
    return y, total


def _check(x: Any, residual: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> None:
    norms.check_norm(OP, x, normalized_shape, weight=weight, bias=bias)
    norms.check_sum(OP, x, residual)
    checks.number(OP, "eps", eps)


def _run(
    launch: Launch,
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> list[torch.Tensor]:
    width = math.prod(normalized_shape)
    rows, beside = as_matrix(x, width), as_matrix(residual, width)
    y, total = (torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(2))
    flat = [None if p is None else p.reshape(width) for p in (weight, bias)]
    launch(layer_norm_fwd, rows, *flat, y, eps, beside, total)
    return [y.view(x.shape), total.view(x.shape)]


def _forward(
    dispatch: Ready, needed: Sequence[bool], x: torch.Tensor, residual: torch.Tensor, *others: Any
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    y, total = dispatch(x, residual, *others)
    return [y, total], (total, *others)


def _backward(
    saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor | None, dtotal: torch.Tensor | None
) -> Sequence[torch.Tensor | None]:
    total, shape, weight, bias, eps = saved
    return norms.gradients_of_sum(
        needed, dy, dtotal,
        lambda slopes, wanted: layer_norm_backward(slopes, total, shape, weight, bias, eps, wanted, dtotal),
    )  # fmt: skip


_dispatch = define(
    Op(
        public=add_layer_norm,
        reference=reference.add_layer_norm,
        fake=lambda x, *_: [fakes.like_first(x), fakes.like_first(x)],
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"input": slice(0, -1), "residual": slice(0, -1), "weight": slice(0, 0), "bias": slice(0, 0)},
        autocast={"cuda": "float32"},
        gradient=Gradient(("input", "residual", "weight", "bias"), _forward, _backward),
        shardings=lambda _, x, residual, shape, *__: norms.shardings(
            x, shape, (ROWS, ROWS), (ROWS, ROWS, None, WHOLE, WHOLE, None)
        ),
        schema="(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)"
        " -> Tensor[]",
    )
)
