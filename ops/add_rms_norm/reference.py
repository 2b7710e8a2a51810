"""A sum and its RMS norm in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch

from kpt.ops.rms_norm.reference import rms_norm


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    weight_offset: float,
) -> list[torch.Tensor]:
    """[norm, sum]: the sum is rounded before its norm is taken, as two calls would."""
    total = x.contiguous() + residual.contiguous()
    return [rms_norm(total, normalized_shape, weight, eps, weight_offset), total]
