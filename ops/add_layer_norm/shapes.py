"""Shapes that residual streams have, and inputs of a given shape."""

from collections.abc import Mapping
from typing import Any

import torch

from kpt.ops.layer_norm import shapes as alone
from kpt.ops.shapes import Shape

SHAPES = (
    Shape("minilm", {"M": 32 * 128, "N": 384}, "f32"),
    Shape("bert-base", {"M": 32 * 512, "N": 768}),
    Shape("gpt2", {"M": 8 * 1024, "N": 768}),
)


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, weight: bool = True, bias: bool = True
) -> tuple[Any, ...]:
    """Random arguments of the op for M rows of width N."""
    x, *rest = alone.arguments(dims, dtype, device, weight=weight, bias=bias)
    return x, torch.randn_like(x), *rest
