"""Shapes of gates that models have, and inputs of a given shape."""

from collections.abc import Mapping
from typing import Any

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N")
"""M rows of N features."""

SHAPES = (
    Shape("llama-1b", {"M": 4 * 2048, "N": 8192}, flags={"activation": "silu"}),
    Shape("llama-8b", {"M": 8192, "N": 14336}, flags={"activation": "silu"}),
    Shape("llama-8b", {"M": 16, "N": 14336}, flags={"activation": "silu"}),
    Shape("gemma-2b", {"M": 8192, "N": 16384}, flags={"activation": "gelu_tanh"}),
)

TRAINED = tuple(shape for shape in SHAPES if shape.dims["M"] >= 1024)
"""Those that training has; fewer rows are decoding."""


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, activation: str = "gelu", joined: bool = False
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Random arguments of the op; ``joined``: gate and up are the halves of one product."""
    m, n = dims["M"], dims["N"]
    both = torch.randn((m, 2 * n) if joined else (2, m, n), dtype=torch_dtype(dtype), device=device)
    gate, up = both.chunk(2, -1) if joined else both
    return gate, up, activation


def backward_arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, activation: str = "gelu", joined: bool = False
) -> tuple[Any, ...]:
    """Random arguments of ``gated_act_backward``, with both gradients wanted."""
    gate, up, _ = arguments(dims, dtype, device, activation=activation, joined=joined)
    return torch.randn_like(gate), gate, up, activation, (True, True)
