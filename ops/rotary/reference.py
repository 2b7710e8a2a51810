"""Rotary position embedding in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

import torch

from kpt.ops.memory_order import empty_like, laid_out


def rotary(
    q: torch.Tensor | None, k: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> list[torch.Tensor]:
    """Those of q and k that are given, turned, in their memory order; rounded as PyTorch's operations round."""
    cos, sin = (t if t.ndim == 4 else t.unsqueeze(-3) for t in (cos, sin))
    return [laid_out(_turned(t, cos, sin, interleaved), empty_like(t)) for t in (q, k) if t is not None]


def rotary_backward(
    dq: torch.Tensor | None, dk: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> list[torch.Tensor]:
    """The gradients: each pair by its transposed matrix, which turns back."""
    return rotary(dq, dk, cos, -_exchanged(sin, interleaved), interleaved)


def _exchanged(t: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The numbers of each pair the other way round."""
    return t.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else torch.cat(t.chunk(2, -1)[::-1], -1)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    columns = cos.shape[-1]
    turned, rest = x[..., :columns], x[..., columns:]
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else turned.chunk(2, -1)
    other = torch.stack((-second, first), -1).flatten(-2) if interleaved else torch.cat((-second, first), -1)
    return torch.cat(((turned * cos + other * sin).to(x.dtype), rest), -1)
