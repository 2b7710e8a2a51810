"""Shapes that residual streams have, and inputs of a given shape."""

from collections.abc import Mapping
from typing import Any

import torch

from kpt.ops.rms_norm import shapes as alone
from kpt.ops.shapes import Shape

SHAPES = (
    Shape("llama-8b", {"M": 4096, "N": 4096}),
    Shape("llama-8b", {"M": 16, "N": 4096}),
    Shape("llama-70b", {"M": 4096, "N": 8192}),
    Shape("gemma3-4b", {"M": 4096, "N": 2560}, flags={"weight_offset": 1.0}),
)


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, weight_offset: float = 0.0
) -> tuple[Any, ...]:
    """Random arguments of the op for M rows of width N."""
    x, shape, gain, eps, offset = alone.arguments(dims, dtype, device, weight=weight, weight_offset=weight_offset)
    return x, torch.randn_like(x), shape, gain, eps, offset
