"""RMS norm in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resolved_eps(dtype: torch.dtype, eps: float | None) -> float:
    """What eps=None stands for, as in ``torch.nn.functional.rms_norm``: the spacing at one of the type computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps if eps is None else eps


def rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, eps: float | None
) -> torch.Tensor:
    """``torch.nn.functional.rms_norm``; a float32 weight beside half-precision input is not rounded first."""
    eps = resolved_eps(x.dtype, eps)
    if weight is not None and weight.dtype != x.dtype:
        return F.rms_norm(x.float(), normalized_shape, weight.float(), eps).to(x.dtype).contiguous()
    return F.rms_norm(x, normalized_shape, weight, eps).contiguous()
