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


def layer_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    needed: Sequence[bool],
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of ``layer_norm`` that are needed, in float32 (float64 for float64), rounded at the end."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide_dy, wide_x = (t if t.dtype == torch.float64 else t.float() for t in (dy, x))
    centred = wide_x - wide_x.mean(dims, keepdim=True)
    centred = centred - centred.mean(dims, keepdim=True)  # what rounding leaves, where a row hardly varies
    rstd = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    normal = centred * rstd
    gradients = []
    if needed[0]:
        scaled = wide_dy if weight is None else wide_dy * weight
        across, along = scaled.mean(dims, keepdim=True), (scaled * normal).mean(dims, keepdim=True)
        dx = (scaled - across - normal * along) * rstd
        gradients.append((dx if added is None else dx + added).to(x.dtype).contiguous())
    if needed[1]:
        assert weight is not None
        gradients.append((wide_dy * normal).reshape(-1, *weight.shape).sum(0).to(weight.dtype))
    if needed[2]:
        assert bias is not None
        gradients.append(wide_dy.reshape(-1, *bias.shape).sum(0).to(bias.dtype))
    return gradients
