"""A sum and its layer norm in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch

from kpt.ops.layer_norm.reference import layer_norm


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> list[torch.Tensor]:
    """[norm, sum]: the sum is rounded before its norm is taken, as two calls would."""
    total = x.contiguous() + residual.contiguous()
    return [layer_norm(total, normalized_shape, weight, bias, eps), total]
