"""Shapes of FP8 products that models have, and inputs of a given shape."""

from collections.abc import Mapping
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N", "K")
"""Rows of a, columns of b, and the extent summed over."""

SHAPES = (
    Shape("llama-8b", {"M": 8192, "N": 14336, "K": 4096}, "f8e4m3"),
    Shape("llama-8b", {"M": 16, "N": 14336, "K": 4096}, "f8e4m3"),
    Shape("llama-8b", {"M": 8192, "N": 4096, "K": 14336}, "f8e4m3"),
    Shape("matmul", {"M": 8192, "N": 8192, "K": 8192}, "f8e4m3"),
    Shape("matmul", {"M": 8192, "N": 14336, "K": 4096}, "f8e4m3", {"granularity": "row"}),
)


def arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    granularity: str = "tensor",
    bias: bool = False,
    out_dtype: str = "bf16",
) -> tuple[Any, ...]:
    """Random arguments of the op; ``granularity`` of the scales is "tensor" or "row"."""
    m, n, k = dims["M"], dims["N"], dims["K"]
    if granularity not in ("tensor", "row"):
        checks.reject("fp8_matmul", "granularity", repr(granularity), "tensor, row")
    a, b = (torch.randn(rows, k, device=device).to(torch_dtype(dtype)) for rows in (m, n))
    rows, columns = ((m, 1), (1, n)) if granularity == "row" else ((), ())
    scale_a, scale_b = torch.rand(rows, device=device) + 0.5, torch.rand(columns, device=device) + 0.5
    out = torch_dtype(out_dtype)
    return a, b.T, scale_a, scale_b, torch.randn(n, device=device).to(out) if bias else None, out
