"""Linear, then activation, in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "none": _identity,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
    }
)
"""PyTorch's activations by the names that ``linear_act`` takes; the kernels' own table has the same names."""


def linear_act(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """``activation(torch.nn.functional.linear(x, weight, bias))``."""
    return ACTIVATIONS[activation](F.linear(x, weight, bias)).contiguous()
