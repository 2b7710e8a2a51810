"""The layer-norm op: public function, checks, and the kernel call behind it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks, fakes
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.layer_norm import reference
from kpt.ops.layer_norm.backward import GRADIENT
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.layer_norm.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.norms import ROWS, as_shape, check_norm, shardings
from kpt.ops.registry import WHOLE, Op


def layer_norm(
    input: torch.Tensor,  # noqa: A002 (the name it has in torch.nn.functional)
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``(input - mean) / sqrt(var + eps) * weight + bias`` over the trailing dims, as ``torch.nn.functional.layer_norm``.

    ``input``: (..., *normalized_shape), float16, bfloat16, float32 or float64. ``weight``, ``bias``: normalized_shape, of the
    input's dtype, or float32 beside a half-precision input. Statistics are float32. Gives a contiguous tensor of the input's
    shape and dtype. Raises InputError for arguments that do not fit. Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    result: torch.Tensor = _dispatch(input, as_shape(normalized_shape), weight, bias, eps)
    return result


def _check(x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> None:
    check_norm("layer_norm", x, normalized_shape, weight=weight, bias=bias)
    checks.number("layer_norm", "eps", eps)


def _run(
    launch: Launch, x: torch.Tensor, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> torch.Tensor:
    width = math.prod(normalized_shape)
    rows = as_matrix(x, width)
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if len(normalized_shape) > 1:
        weight, bias = (None if p is None else p.reshape(width) for p in (weight, bias))
    launch(layer_norm_fwd, rows, weight, bias, y, eps, None, None)
    return y if rows is x else y.view(x.shape)


_dispatch = define(
    Op(
        public=layer_norm,
        reference=reference.layer_norm,
        fake=fakes.like_first,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"input": slice(0, -1), "weight": slice(0, 0), "bias": slice(0, 0)},
        fuses=True,
        autocast={"cuda": "float32"},
        gradient=GRADIENT,
        shardings=lambda _, x, shape, *__: shardings(x, shape, (ROWS,), (ROWS, None, WHOLE, WHOLE, None)),
    )
)
