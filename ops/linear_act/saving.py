"""The linear-with-activation op that gives its pre-activation besides: the forward of training."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.library import define
from kpt.ops.linear_act import reference
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.alignment import aligned
from kpt.ops.linear_act.backward_kernels import linear_act_fwd_saving
from kpt.ops.linear_act.contract import check_linear, flops
from kpt.ops.linear_act.shapes import DIMS, TRAINED, saving_arguments
from kpt.ops.linear_act.weights import as_it_lies
from kpt.ops.registry import WHOLE, Op, Sharding


def linear_act_saving(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, activation: str = "none"
) -> tuple[torch.Tensor, torch.Tensor]:
    """``linear_act`` and its pre-activation, ``x @ weight.T + bias``, both (..., N), contiguous, of the dtype of x.

    The pre-activation is for ``linear_act_backward``: it stops at 32768 on both sides, beyond which no gradient changes.

    Arguments and errors are those of ``linear_act``.
    """
    y, preactivation = _dispatch(x, weight, bias, activation)
    return y, preactivation


_check = partial(check_linear, "linear_act_saving")


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


def _shardings(_: int, x: torch.Tensor, *__: Any) -> Iterator[Sharding]:
    last = x.ndim - 1
    for dim in range(last):
        yield Sharding((dim, dim), (dim, WHOLE, WHOLE, None))
    yield Sharding((last, last), (WHOLE, 0, 0, None))


def _run(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = aligned(as_matrix(x, weight.shape[1]), weight.shape[0])
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    z = torch.empty_like(y)
    matrix = (rows.shape[0], weight.shape[0])
    plain, transposed = as_it_lies(weight, rows.shape[0])
    launch(
        linear_act_fwd_saving,
        rows, plain, bias, y.view(matrix), z.view(matrix), ACTIVATIONS[activation], transposed,
    )  # fmt: skip
    return y, z


_dispatch = define(
    Op(
        public=linear_act_saving,
        reference=reference.linear_act_saving,
        fake=_fake,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=saving_arguments,
        shapes=TRAINED,
        lengths={"x": slice(0, -1), "weight": slice(0, 0), "bias": slice(0, 0)},
        autocast={"cuda": "lower", "cpu": "lower", "xla": "lower"},
        multiplies=True,
        flops=flops,
        shardings=_shardings,
    )
)
