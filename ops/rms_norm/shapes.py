"""RMS-norm shapes that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N")
"""M rows of width N."""

SHAPES = (
    Shape("llama-8b", {"M": 4096, "N": 4096}),
    Shape("llama-8b", {"M": 16, "N": 4096}),
    Shape("llama-70b", {"M": 4096, "N": 8192}),
    Shape("qwen3-8b", {"M": 4096 * 32, "N": 128}),
    Shape("norms", {"M": 32768, "N": 1024}),
    Shape("norms", {"M": 8192, "N": 4096}),
    Shape("norms", {"M": 8192, "N": 8192}),
    Shape("norms", {"M": 4096, "N": 16384}),
)


TRAINED = tuple(shape for shape in SHAPES if shape.dims["M"] >= 1024)
"""Those that training has; fewer rows are decoding."""


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, weight_offset: float = 0.0
) -> tuple[torch.Tensor, tuple[int, ...], torch.Tensor | None, float | None, float]:
    """Random arguments of the op for M rows of width N."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    m, n = dims["M"], dims["N"]
    return randn(m, n), (n,), randn(n) if weight else None, 1e-6, weight_offset


def backward_arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, weight_offset: float = 0.0, added: bool = False
) -> tuple[Any, ...]:
    """Random arguments of ``rms_norm_backward``, with all gradients wanted."""
    x, shape, w, eps, offset = arguments(dims, dtype, device, weight=weight, weight_offset=weight_offset)
    beside = torch.randn_like(x) if added else None
    return torch.randn_like(x), x, shape, w, eps, (True, weight), offset, beside
