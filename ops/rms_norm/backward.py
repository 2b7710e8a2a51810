"""The gradients of RMS norm: an op of its own, the kernel calls behind it, and what autograd is told."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks, fakes, norms
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.library import define
from kpt.ops.norms import ROWS
from kpt.ops.registry import WHOLE, Gradient, Op
from kpt.ops.rms_norm import backward_kernels as kernels
from kpt.ops.rms_norm import reference
from kpt.ops.rms_norm.shapes import DIMS, TRAINED, backward_arguments

OP = "rms_norm_backward"
INPUTS = ("input", "weight")
"""What has a gradient, in order."""


def rms_norm_backward(
    dy: torch.Tensor,
    input: torch.Tensor,  # noqa: A002 (the name it has in rms_norm)
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    needed: Sequence[bool],
    weight_offset: float = 0.0,
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of ``rms_norm``: of input and weight those that are ``needed`` (one bool for each), in this order.

    ``dy``: the gradient of its output, of the shape and dtype of ``input``; ``added``: what is like it and is added to that of
    input before it is rounded (what arrives by another way, around the norm); the other arguments are its. Each gradient is
    contiguous, with the shape and dtype of what it belongs to. The root mean square is made again, and all sums accumulate in
    float32, in the same order every time. Raises InputError for arguments that do not fit. Zhang & Sennrich 2019,
    arXiv:1910.07467.
    """
    given = (dy, input, norms.as_shape(normalized_shape), weight, eps, tuple(needed), weight_offset, added)
    gradients: list[torch.Tensor] = _dispatch(*given)
    return gradients


def check_numbers(op: str, weight: Any, eps: Any, weight_offset: Any) -> None:
    """Raises InputError unless eps is None or a number, and the offset one that there is a weight for."""
    if eps is not None:
        checks.number(op, "eps", eps)
    checks.number(op, "weight_offset", weight_offset)
    if weight is None and weight_offset:
        checks.reject(op, "weight_offset", repr(weight_offset), "0.0, as there is no weight")


def _check(
    dy: Any, x: Any, normalized_shape: Any, weight: Any, eps: Any, needed: Any, weight_offset: Any = 0.0, added: Any = None
) -> None:
    norms.check_norm_backward(OP, dy, x, normalized_shape, needed, INPUTS, added, any_dtype=True, weight=weight)
    check_numbers(OP, weight, eps, weight_offset)


def _run(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    needed: Sequence[bool],
    weight_offset: float = 0.0,
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    needs_x, needs_weight = needed
    if not needs_x and not needs_weight:
        return []
    width = math.prod(normalized_shape)
    rows, slopes = as_matrix(x, width), as_matrix(dy, width)
    flat = None if weight is None else weight.reshape(width)
    eps = reference.resolved_eps(x.dtype, eps)
    offset = weight_offset or None
    beside = None if added is None or not needs_x else as_matrix(added, width)
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format) if needs_x else None
    gradients = [] if dx is None else [dx.view(x.shape)]
    if not needs_weight:
        launch(kernels.rms_norm_bwd_dx, slopes, rows, flat, dx, eps, offset, beside)
        return gradients
    assert weight is not None
    held = norms.is_held(rows)
    sums = norms.partial_sums(rows, norms.shares(rows, held))
    if held:
        launch(kernels.rms_norm_bwd, slopes, rows, flat, dx, sums, eps, offset, beside)
    else:
        statistics = [rows.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(2)]
        launch(kernels.rms_norm_bwd_rows, slopes, rows, flat, *statistics, eps, offset)
        launch(kernels.rms_norm_bwd_tiles, slopes, rows, flat, *statistics, dx, sums, offset, beside)
    return gradients + norms.launch_column_sums(launch, [sums], [weight], normalized_shape)


_dispatch = define(
    Op(
        public=rms_norm_backward,
        reference=reference.rms_norm_backward,
        fake=fakes.gradients_of(1, 3, needed=5),
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=TRAINED,
        lengths={"dy": slice(0, -1), "input": slice(0, -1), "weight": slice(0, 0), "added": slice(0, -1)},
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=lambda _, dy, x, shape, weight, eps, needed, *__: norms.backward_shardings(
            x, shape, needed, (ROWS, ROWS, None, WHOLE, None, None, None, ROWS)
        ),
        schema="(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, bool[] needed, "
        "float weight_offset=0.0, Tensor? added=None) -> Tensor[]",
    )
)


def _backward(saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor) -> list[torch.Tensor]:
    x, shape, weight, eps, offset = saved
    gradients: list[torch.Tensor] = _dispatch(dy, x, shape, weight, eps, needed, offset, None)
    return gradients


GRADIENT = Gradient.of_arguments(INPUTS, _backward)
"""Saves the input and the weight themselves: the root mean square of a row costs nothing beside reading it."""
