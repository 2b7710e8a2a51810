"""The gradients of layer norm: an op of its own, the kernel calls behind it, and what autograd is told."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks, fakes, norms
from kpt.ops.backends import Launch, as_matrix, generated, rooms
from kpt.ops.layer_norm import backward_kernels as kernels
from kpt.ops.layer_norm import reference
from kpt.ops.layer_norm.shapes import DIMS, TRAINED, backward_arguments
from kpt.ops.library import define
from kpt.ops.norms import ROWS
from kpt.ops.registry import WHOLE, Gradient, Op

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
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of ``layer_norm``: of input, weight and bias those that are ``needed`` (one bool for each), in this order.

    ``dy``: the gradient of its output, of the shape and dtype of ``input``; ``added``: what is like it and is added to that of
    input before it is rounded (what arrives by another way, around the norm); the other arguments are its. Each gradient is
    contiguous, with the shape and dtype of what it belongs to; of ``bias`` nothing else is read. Statistics are made again, and
    all sums accumulate in float32, in the same order every time. Raises InputError for arguments that do not fit. Ba, Kiros &
    Hinton 2016, arXiv:1607.06450.
    """
    given = (dy, input, norms.as_shape(normalized_shape), weight, bias, eps, tuple(needed), added)
    gradients: list[torch.Tensor] = _dispatch(*given)
    return gradients


def _check(
    dy: Any, x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any, needed: Any, added: Any = None
) -> None:
    norms.check_norm_backward(OP, dy, x, normalized_shape, needed, INPUTS, added, weight=weight, bias=bias)
    checks.number(OP, "eps", eps)


def _run(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    needed: Sequence[bool],
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    needs_x, needs_weight, needs_bias = needed
    width = math.prod(normalized_shape)
    slopes = as_matrix(dy, width)
    if needs_bias and not needs_x and not needs_weight:
        assert bias is not None
        return norms.launch_bias_sums(launch, slopes, bias, normalized_shape)
    rows = as_matrix(x, width)
    flat = None if weight is None else weight.reshape(width)
    beside = None if added is None or not needs_x else as_matrix(added, width)
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format) if needs_x else None
    gradients = [] if dx is None else [dx.view(x.shape)]
    if not needs_weight and not needs_bias:
        if dx is not None:
            launch(kernels.layer_norm_bwd_dx, slopes, rows, flat, dx, eps, beside)
        return gradients
    held = norms.is_held(rows)
    count = norms.shares(rows, held)
    room = rooms(rows, (count, width), needs_weight + needs_bias)
    sums = [room[0] if needs_weight else None, room[-1] if needs_bias else None]
    if held:
        launch(kernels.layer_norm_bwd, slopes, rows, flat, dx, *sums, eps, beside)
    else:
        statistics = [rows.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(5)]
        launch(kernels.layer_norm_bwd_rows, slopes, rows, flat, *statistics, eps)
        launch(kernels.layer_norm_bwd_tiles, slopes, rows, flat, *statistics, dx, *sums, beside)
    made = [(s, p) for s, p in zip(sums, (weight, bias), strict=True) if s is not None and p is not None]
    return gradients + norms.launch_column_sums(launch, [s for s, _ in made], [p for _, p in made], normalized_shape)


_dispatch = define(
    Op(
        public=layer_norm_backward,
        reference=reference.layer_norm_backward,
        fake=fakes.gradients_of(1, 3, 4, needed=6),
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=TRAINED,
        lengths=dict.fromkeys(("dy", "input", "added"), slice(0, -1)) | dict.fromkeys(("weight", "bias"), slice(0, 0)),
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=lambda _, dy, x, shape, weight, bias, eps, needed, *__: norms.backward_shardings(
            x, shape, needed, (ROWS, ROWS, None, WHOLE, WHOLE, None, None, ROWS)
        ),
        schema="(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, bool[] needed, "
        "Tensor? added=None) -> Tensor[]",
    )
)


def _backward(saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = _dispatch(dy, *saved, needed, None)
    return gradients


GRADIENT = Gradient.of_arguments(INPUTS, _backward)
"""Saves the input and the parameters themselves: the statistics of a row cost nothing beside reading it."""
