"""The linear-with-activation op: public function, checks, and the kernel call behind it."""

from collections.abc import Iterator
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.library import define
from kpt.ops.linear_act import reference
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.alignment import aligned
from kpt.ops.linear_act.backward import GRADIENT
from kpt.ops.linear_act.contract import check_linear, flops
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.linear_act.shapes import DIMS, SHAPES, arguments
from kpt.ops.linear_act.weights import as_it_lies
from kpt.ops.registry import SUM, WHOLE, Op, Sharding


def linear_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "none",
    recompute: bool = False,
) -> torch.Tensor:
    """``activation(x @ weight.T + bias)`` in one kernel: the product is float32 until behind the activation.

    ``x``: (..., K), ``weight``: (N, K), ``bias``: (N,); float16, bfloat16, float32 or float64, all alike. ``activation``:
    "none", or a name in Transformers' table (docs/transformer-blocks.md). Gives (..., N), contiguous, of the same dtype.
    float32 products follow ``torch.set_float32_matmul_precision``. A transposed weight, as GPT-2's, which is kept as (K, N), is
    read as it lies, and its gradient lies so, too. Raises InputError for arguments that do not fit.

    For its gradient the forward also stores the pre-activation, (..., N), as PyTorch's two ops do; with ``recompute`` it does
    not, and the backward makes it again, at the price of one product more. "none" and "relu" need neither.
    """
    result: torch.Tensor = _dispatch(x, weight, bias, activation, recompute)
    return result


def _check(x: Any, weight: Any, bias: Any, activation: Any, recompute: Any) -> None:
    check_linear("linear_act", x, weight, bias, activation)
    checks.flag("linear_act", "recompute", recompute)


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _shardings(_: int, x: torch.Tensor, weight: Any, bias: Any, activation: str, recompute: Any) -> Iterator[Sharding]:
    last = x.ndim - 1
    for dim in range(last):
        yield Sharding((dim,), (dim, WHOLE, WHOLE, None, None))
    yield Sharding((last,), (WHOLE, 0, 0, None, None))
    if activation == "none" and bias is None:
        yield Sharding((SUM,), (last, 1, None, None, None))


def _run(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, _: bool
) -> torch.Tensor:
    rows = aligned(as_matrix(x, weight.shape[1]), weight.shape[0])
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    matrix = y if x.ndim == 2 else y.view(-1, weight.shape[0])
    plain, transposed = as_it_lies(weight, rows.shape[0])
    launch(linear_act_fwd, rows, plain, bias, matrix, ACTIVATIONS[activation], transposed)
    return y


_dispatch = define(
    Op(
        public=linear_act,
        reference=reference.linear_act,
        fake=_fake,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "lower", "cpu": "lower", "xla": "lower"},
        gradient=GRADIENT,
        multiplies=True,
        lengths={"x": slice(0, -1), "weight": slice(0, 0), "bias": slice(0, 0)},
        flops=flops,
        shardings=_shardings,
    )
)
