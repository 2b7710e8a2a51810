"""The gradients of layer norm: an op of its own, the kernel calls behind it, and what autograd is told."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from kpt.ops import checks, norms
from kpt.ops.backends import Launch, as_matrix, kernel_implementations, record, rooms, wide_dtype
from kpt.ops.layer_norm import backward_kernels as kernels
from kpt.ops.layer_norm import reference
from kpt.ops.layer_norm.shapes import DIMS, TRAINED, backward_arguments
from kpt.ops.library import define
from kpt.ops.registry import Gradient, Op, Ready

OP = "layer_norm_backward"
INPUTS = ("input", "weight", "bias")
"""What has a gradient, in order."""


def layer_norm_backward(
    dy: torch.Tensor,
    input: torch.Tensor,  # noqa: A002 (the name it has in layer_norm)
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients of ``layer_norm``: of input, weight and bias those that are ``needed`` (one bool for each), in this order.

    ``dy``: the gradient of its output, of the shape and dtype of ``input``; the other arguments are its. Each gradient is
    contiguous, with the shape and dtype of what it belongs to; of ``bias`` nothing else is read. Statistics are made again, and
    all sums accumulate in float32, in the same order every time. Raises InputError for arguments that do not fit. Ba, Kiros &
    Hinton 2016, arXiv:1607.06450.
    """
    given = (dy, input, norms.as_shape(normalized_shape), weight, bias, eps, tuple(needed))
    gradients: list[torch.Tensor] = _dispatch(*given)
    return gradients


def _check(dy: Any, x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any, needed: Any) -> None:
    norms.check_norm_backward(OP, dy, x, normalized_shape, needed, INPUTS, weight=weight, bias=bias)
    checks.number(OP, "eps", eps)


def _fake(
    dy: Any, x: torch.Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: Any, needed: Sequence[bool]
) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t, wanted in zip((x, weight, bias), needed, strict=True) if wanted]


def _why_not(dy: Any, x: torch.Tensor, _: Any, weight: Any, bias: Any, *__: Any) -> str | None:
    return wide_dtype(x, weight, bias)


def _run(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    needs_x, needs_weight, needs_bias = needed
    width = math.prod(normalized_shape)
    slopes = as_matrix(dy, width)
    if needs_bias and not needs_x and not needs_weight:
        assert bias is not None
        return norms.launch_bias_sums(launch, slopes, bias, normalized_shape)
    rows = as_matrix(x, width)
    flat = None if weight is None else weight.reshape(width)
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format) if needs_x else None
    gradients = [] if dx is None else [dx.view(x.shape)]
    if not needs_weight and not needs_bias:
        if dx is not None:
            launch(kernels.layer_norm_bwd_dx, slopes, rows, flat, dx, eps)
        return gradients
    held = norms.is_held(rows)
    count = norms.shares(rows, held)
    room = rooms(rows, (count, width), needs_weight + needs_bias)
    sums = [room[0] if needs_weight else None, room[-1] if needs_bias else None]
    if held:
        launch(kernels.layer_norm_bwd, slopes, rows, flat, dx, *sums, eps)
    else:
        statistics = [rows.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(5)]
        launch(kernels.layer_norm_bwd_rows, slopes, rows, flat, *statistics, eps)
        launch(kernels.layer_norm_bwd_tiles, slopes, rows, flat, *statistics, dx, *sums)
    made = [(s, p) for s, p in zip(sums, (weight, bias), strict=True) if s is not None and p is not None]
    return gradients + norms.launch_column_sums(launch, [s for s, _ in made], [p for _, p in made], normalized_shape)


_dispatch = define(
    Op(
        name=OP,
        schema="(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps,"
        " bool[] needed) -> Tensor[]",
        reference=reference.layer_norm_backward,
        public=layer_norm_backward,
        fake=_fake,
        check=_check,
        kernels=kernel_implementations(_run, _why_not),
        dims=DIMS,
        arguments=backward_arguments,
        record=partial(record, _run),
        shapes=TRAINED,
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=lambda _, dy, x, shape, *rest: norms.backward_shardings(x, shape, 2, rest[-1]),
    )
)


def _forward(
    dispatch: Ready,
    needed: Sequence[bool],
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    needs_x, needs_weight, needs_bias = needed
    kept = (weight if needs_x or needs_weight else None, bias if needs_bias else None)
    return dispatch(x, normalized_shape, weight, bias, eps), (x, normalized_shape, *kept, eps)


def _backward(saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = _dispatch(dy, *saved, needed)
    return gradients


GRADIENT = Gradient(INPUTS, _forward, _backward)
"""Saves the input and the parameters themselves: the statistics of a row cost nothing beside reading it."""
