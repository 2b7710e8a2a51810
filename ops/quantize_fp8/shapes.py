"""Shapes that are quantised in models, and inputs of a given shape."""

from collections.abc import Mapping

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N")
"""M rows of width N."""

SHAPES = (
    Shape("llama-8b", {"M": 8192, "N": 4096}, flags={"granularity": "row"}),
    Shape("llama-8b", {"M": 8192, "N": 14336}, flags={"granularity": "row"}),
    Shape("llama-8b", {"M": 16, "N": 4096}, flags={"granularity": "row"}),
    Shape("llama-8b", {"M": 8192, "N": 4096}),
)


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, granularity: str = "tensor", to: str = "f8e4m3"
) -> tuple[torch.Tensor, str, torch.dtype]:
    """Random arguments of the op for M rows of width N; ``to`` is the FP8 type."""
    return torch.randn(dims["M"], dims["N"], dtype=torch_dtype(dtype), device=device), granularity, torch_dtype(to)
