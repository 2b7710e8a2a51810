"""Layer norm in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """``torch.nn.functional.layer_norm``; float32 weights beside half-precision inputs are not rounded first."""
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        wide_weight, wide_bias = (None if p is None else p.float() for p in (weight, bias))
        return F.layer_norm(x.float(), list(normalized_shape), wide_weight, wide_bias, eps).to(x.dtype)
    return F.layer_norm(x, list(normalized_shape), weight, bias, eps)
