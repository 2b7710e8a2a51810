"""RMS norm in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resolved_eps(dtype: torch.dtype, eps: float | None) -> float:
    """What eps=None stands for, as in ``torch.nn.functional.rms_norm``: the spacing at one of the type computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps if eps is None else eps


def rms_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    """``torch.nn.functional.rms_norm``; a weight of another type than the input, or with an offset, is not rounded first."""
    eps = resolved_eps(x.dtype, eps)
    if weight is not None and (weight_offset or weight.dtype != x.dtype):
        wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        gain = weight.to(wide) + weight_offset if weight_offset else weight.to(wide)
        return F.rms_norm(x.to(wide), normalized_shape, gain, eps).to(x.dtype).contiguous()
    return F.rms_norm(x, normalized_shape, weight, eps).contiguous()


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    needed: Sequence[bool],
    weight_offset: float = 0.0,
    added: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of ``rms_norm`` that are needed, in float32 (float64 for float64), rounded at the end."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide_dy, wide_x = (t if t.dtype == torch.float64 else t.float() for t in (dy, x))
    rstd = (wide_x.square().mean(dims, keepdim=True) + resolved_eps(x.dtype, eps)).rsqrt()
    normal = wide_x * rstd
    gradients = []
    if needed[0]:
        scaled = wide_dy if weight is None else wide_dy * (weight.to(wide_dy.dtype) + weight_offset)
        along = (scaled * normal).mean(dims, keepdim=True)
        dx = (scaled - normal * along) * rstd
        gradients.append((dx if added is None else dx + added).to(x.dtype).contiguous())
    if needed[1]:
        assert weight is not None
        gradients.append((wide_dy * normal).reshape(-1, *weight.shape).sum(0).to(weight.dtype))
    return gradients
