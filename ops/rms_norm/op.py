"""The RMS-norm op: public function, checks, and the kernel call behind it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import fakes
from kpt.ops.autocast import as_pytorchs
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.library import define
from kpt.ops.norms import ROWS, as_shape, check_norm, shardings
from kpt.ops.registry import WHOLE, Op
from kpt.ops.rms_norm import reference
from kpt.ops.rms_norm.backward import GRADIENT, check_numbers
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt.ops.rms_norm.shapes import DIMS, SHAPES, arguments


def rms_norm(
    input: torch.Tensor,  # noqa: A002 (the name it has in torch.nn.functional)
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    """``input / sqrt(mean(input ** 2) + eps) * (weight_offset + weight)`` over the trailing dims, as
    ``torch.nn.functional.rms_norm``, which has no offset.

    ``input``: (..., *normalized_shape), float16, bfloat16, float32 or float64. ``weight``: normalized_shape, of any of these
    dtypes. ``eps`` None: the spacing at one of the type computed in (float32, or float64 for float64). ``weight_offset``: 1.0
    for norms that keep their gain less one, as Gemma's; there must be a weight, to which it is added in float32. Statistics
    are float32. Gives a contiguous tensor of the input's shape and dtype. Raises InputError for arguments that do not fit.
    Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    result: torch.Tensor = _dispatch(input, as_shape(normalized_shape), weight, eps, weight_offset)
    return result


def _check(x: Any, normalized_shape: Any, weight: Any, eps: Any, weight_offset: Any = 0.0) -> None:
    check_norm("rms_norm", x, normalized_shape, any_dtype=True, weight=weight)
    check_numbers("rms_norm", weight, eps, weight_offset)


def _run(
    launch: Launch,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    width = math.prod(normalized_shape)
    rows = as_matrix(x, width)
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if weight is not None and weight.ndim > 1:
        weight = weight.reshape(width)
    launch(rms_norm_fwd, rows, weight, y, reference.resolved_eps(x.dtype, eps), weight_offset or None, None, None)
    return y if rows is x else y.view(x.shape)


_dispatch = define(
    Op(
        public=rms_norm,
        reference=reference.rms_norm,
        fake=fakes.like_first,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"input": slice(0, -1), "weight": slice(0, 0)},
        fuses=True,
        autocast=as_pytorchs("rms_norm", "float32"),
        gradient=GRADIENT,
        shardings=lambda _, x, shape, *__: shardings(x, shape, (ROWS,), (ROWS, None, WHOLE, None, None)),
        schema="(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, float weight_offset=0.0) -> Tensor",
    )
)
