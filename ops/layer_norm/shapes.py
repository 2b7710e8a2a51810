"""Layer-norm shapes that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N")
"""M rows of width N."""

SHAPES = (
    Shape("minilm", {"M": 32 * 128, "N": 384}, "f32"),
    Shape("bert-base", {"M": 32 * 512, "N": 768}),
    Shape("gpt2", {"M": 8 * 1024, "N": 768}),
    Shape("vit-l", {"M": 64 * 257, "N": 1024}),
    Shape("norms", {"M": 32768, "N": 1024}),
    Shape("norms", {"M": 8192, "N": 4096}),
    Shape("norms", {"M": 8192, "N": 8192}),
    Shape("norms", {"M": 4096, "N": 16384}),
)


TRAINED = tuple(shape for shape in SHAPES if shape.dims["M"] >= 1024)
"""Those that training has."""


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, bias: bool = True
) -> tuple[torch.Tensor, tuple[int, ...], torch.Tensor | None, torch.Tensor | None, float]:
    """Random arguments of the op for M rows of width N."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    m, n = dims["M"], dims["N"]
    return (
        randn(m, n),
        (n,),
        randn(n) if weight else None,
        randn(n) if bias else None,
        1e-5,
    )


def backward_arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, bias: bool = True, added: bool = False
) -> tuple[Any, ...]:
    """Random arguments of ``layer_norm_backward``, with all gradients wanted."""
    x, shape, w, b, eps = arguments(dims, dtype, device, weight=weight, bias=bias)
    return torch.randn_like(x), x, shape, w, b, eps, (True, weight, bias), torch.randn_like(x) if added else None
