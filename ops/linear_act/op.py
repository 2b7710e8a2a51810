"""The linear-with-activation op: public function, checks, and the kernel call behind it."""

from functools import partial
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, kernel_implementations, record, unit_last_stride, wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.library import define
from kpt.ops.linear_act import reference
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.linear_act.shapes import DIMS, SHAPES, arguments
from kpt.ops.registry import Op


def linear_act(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, activation: str = "none"
) -> torch.Tensor:
    """``activation(x @ weight.T + bias)`` in one kernel: the product is float32 until behind the activation.

    ``x``: (..., K), ``weight``: (N, K), ``bias``: (N,); float16, bfloat16, float32 or float64, all alike. ``activation``:
    "none", "relu", "gelu", "gelu_tanh" or "silu". Gives (..., N), contiguous, of the same dtype. float32 products follow
    ``torch.set_float32_matmul_precision``. Raises InputError for arguments that do not fit.
    """
    result: torch.Tensor = _dispatch(x, weight, bias, activation)
    return result


def _check(x: Any, weight: Any, bias: Any, activation: Any) -> None:
    op = "linear_act"
    checks.tensor(op, "x", x)
    checks.rank(op, "weight", weight, (2,), "rank 2, (features out, features in)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        checks.reject(op, "x", checks.shape_of(x), f"(..., {weight.shape[1]}), as weight is {checks.shape_of(weight)}")
    if bias is not None:
        checks.shape(op, "bias", bias, (weight.shape[0],), "(features out,)")
    checks.dtype(op, "x", x.dtype, FLOATS)
    checks.same_dtype(op, "x", x, weight=weight, bias=bias)
    checks.same_device(op, "x", x, weight=weight, bias=bias)
    if activation not in ACTIVATIONS:
        checks.reject(op, "activation", repr(activation), ", ".join(ACTIVATIONS))


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _why_not(x: torch.Tensor, *_: Any) -> str | None:
    return wide_dtype(x)


def _run(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    rows = as_matrix(x, weight.shape[1])
    y = rows.new_empty((rows.shape[0], weight.shape[0]))
    launch(linear_act_fwd, rows, unit_last_stride(weight), bias, y, ACTIVATIONS[activation])
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])


_dispatch = define(
    Op(
        name="linear_act",
        schema="(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
        reference=reference.linear_act,
        public=linear_act,
        fake=_fake,
        check=_check,
        kernels=kernel_implementations(_run, _why_not),
        dims=DIMS,
        arguments=arguments,
        record=partial(record, _run),
        shapes=SHAPES,
        autocast={"cuda": "lower", "cpu": "lower"},
    )
)
