"""The FP8 product op: public function, checks, and the kernel call behind it."""

from collections.abc import Iterator
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, generated, unit_last_stride
from kpt.ops.dtypes import FP8, KERNEL_FLOATS
from kpt.ops.flops import product
from kpt.ops.fp8_matmul import reference
from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt.ops.fp8_matmul.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.registry import WHOLE, Op, Sharding


def fp8_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """``(a @ b) * scale_a * scale_b + bias`` of FP8 matrices, in the layouts of ``torch._scaled_mm``.

    ``a``: (M, K), ``b``: (K, N), each float8_e4m3fn or float8_e5m2; fastest with a row-major and b column-major (``w.T`` of a
    row-major (N, K) weight), other layouts are copied. ``scale_a``, ``scale_b``: float32, one element (tensor-wise), or (M, 1)
    and (1, N) (row-wise). ``bias``: (N,), float16, bfloat16 or float32. ``out_dtype``: bfloat16, float16 or float32.
    Gives (M, N); sums are float32. Raises InputError for arguments that do not fit.
    """
    result: torch.Tensor = _dispatch(a, b, scale_a, scale_b, bias, out_dtype)
    return result


def _check(a: Any, b: Any, scale_a: Any, scale_b: Any, bias: Any, out_dtype: Any) -> None:
    op = "fp8_matmul"
    checks.rank(op, "a", a, (2,), "rank 2, (M, K)")
    checks.rank(op, "b", b, (2,), "rank 2, (K, N)")
    if a.shape[1] != b.shape[0]:
        checks.reject(op, "b", checks.shape_of(b), f"(K, N) with the K of a, {a.shape[1]}")
    checks.dtype(op, "a", a.dtype, FP8)
    checks.dtype(op, "b", b.dtype, FP8)
    for name, scale, row_wise in (("scale_a", scale_a, (a.shape[0], 1)), ("scale_b", scale_b, (1, b.shape[1]))):
        checks.tensor(op, name, scale)
        checks.dtype(op, name, scale.dtype, (torch.float32,))
        if scale.numel() != 1 and tuple(scale.shape) != row_wise:
            checks.reject(op, name, checks.shape_of(scale), f"one element, or the row-wise shape {row_wise}")
        if scale.ndim > 2:
            checks.reject(op, name, f"{checks.shape_of(scale)}, rank {scale.ndim}", "rank 2 or less")
    if bias is not None:
        checks.shape(op, "bias", bias, (b.shape[1],), "(N,)")
        checks.dtype(op, "bias", bias.dtype, KERNEL_FLOATS)
    checks.dtype(op, "out_dtype", out_dtype, KERNEL_FLOATS)
    checks.same_device(op, "a", a, b=b, scale_a=scale_a, scale_b=scale_b, bias=bias)


def _fake(
    a: torch.Tensor, b: torch.Tensor, scale_a: Any, scale_b: Any, bias: Any, out_dtype: torch.dtype
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


def _flops(a: torch.Tensor, b: torch.Tensor, *_: Any) -> int:
    return product(a.shape[0], b.shape[1], a.shape[1])


def _shardings(_: int, a: Any, b: Any, scale_a: torch.Tensor, scale_b: torch.Tensor, *__: Any) -> Iterator[Sharding]:
    yield Sharding((0,), (0, WHOLE, 0 if scale_a.numel() > 1 else WHOLE, WHOLE, WHOLE, None))
    yield Sharding((1,), (WHOLE, 1, WHOLE, 1 if scale_b.numel() > 1 else WHOLE, 0, None))


def _run(
    launch: Launch,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    m, n = a.shape[0], b.shape[1]
    y = torch.empty((m, n), dtype=out_dtype, device=a.device)
    # A tensor-wise scale is a vector of stride 0: one kernel serves both.
    rows, columns = scale_a.reshape(-1).expand(m), scale_b.reshape(-1).expand(n)
    launch(fp8_matmul_fwd, unit_last_stride(a), unit_last_stride(b.T), rows, columns, bias, y)
    return y


_dispatch = define(
    Op(
        public=fp8_matmul,
        reference=reference.fp8_matmul,
        fake=_fake,
        check=_check,
        kernels=generated(_run, why_not=lambda *_: None),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        flops=_flops,
        shardings=_shardings,
    )
)
