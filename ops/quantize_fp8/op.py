"""The FP8 quantisation op: public function, checks, and the kernel calls behind it."""

from collections.abc import Iterator
from typing import Any, Literal

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.dtypes import FLOATS, FP8
from kpt.ops.library import define
from kpt.ops.quantize_fp8 import reference
from kpt.ops.quantize_fp8.kernels import SMALLEST, quantize_rows, quantize_with_scale, row_amax
from kpt.ops.quantize_fp8.shapes import DIMS, SHAPES, arguments
from kpt.ops.registry import Op, Sharding


def quantize_fp8(
    x: torch.Tensor, granularity: Literal["tensor", "row"] = "tensor", dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to FP8 with a scale that maps the largest magnitude to the largest finite number: ``x ~ y.float() * scale``.

    ``x``: (..., N), float16, bfloat16, float32 or float64. ``granularity``: one scale for the "tensor", or one a "row" of the
    last dim. ``dtype``: float8_e4m3fn or float8_e5m2. Gives y, contiguous, of the shape of x, and scale, float32, of shape ()
    or (..., 1): what ``fp8_matmul`` takes. Magnitudes under 1e-12 count as 1e-12, so zeros give zeros. Raises InputError for
    arguments that do not fit.
    """
    y, scale = _dispatch(x, granularity, dtype)
    return y, scale


def _check(x: Any, granularity: Any, dtype: Any) -> None:
    op = "quantize_fp8"
    checks.tensor(op, "x", x)
    if x.ndim == 0:
        checks.reject(op, "x", "of rank 0", "rank 1 or more, (..., N)")
    checks.dtype(op, "x", x.dtype, FLOATS)
    if granularity not in ("tensor", "row"):
        checks.reject(op, "granularity", repr(granularity), "tensor, row")
    checks.dtype(op, "dtype", dtype, FP8)


def _fake(x: torch.Tensor, granularity: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y, x.new_empty((*x.shape[:-1], 1) if granularity == "row" else (), dtype=torch.float32)


def _shardings(_: int, x: torch.Tensor, granularity: str, dtype: Any) -> Iterator[Sharding]:
    if granularity == "row":
        for dim in range(x.ndim - 1):
            yield Sharding((dim, dim), (dim, None, None))


def _run(launch: Launch, x: torch.Tensor, granularity: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    largest = torch.finfo(dtype).max
    rows = as_matrix(x, x.shape[-1])
    y = torch.empty_like(rows, dtype=dtype, memory_format=torch.contiguous_format)
    by_row = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
    if granularity == "row":
        launch(quantize_rows, rows, y, by_row, largest)
        return y.view(x.shape), by_row.view(*x.shape[:-1], 1)
    launch(row_amax, rows, by_row)
    scale = by_row.amax(0).clamp_min(SMALLEST) / largest  # without a dim, PyTorch/XLA 2.9 gives what it was given
    launch(quantize_with_scale, rows, scale.view(1), y)
    return y.view(x.shape), scale


_dispatch = define(
    Op(
        public=quantize_fp8,
        reference=reference.quantize_fp8,
        fake=_fake,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=_shardings,
    )
)
