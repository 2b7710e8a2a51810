"""Cross-entropy in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

import torch
import torch.nn.functional as F


def widened(t: torch.Tensor) -> torch.Tensor:
    """In the type that losses are computed in."""
    return t if t.dtype == torch.float64 else t.float()


def capped(x: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """softcap * tanh(x / softcap), or x without one."""
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def cross_entropy(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    return_lse: bool,
    return_count: bool | None = None,
) -> list[torch.Tensor]:
    """``torch.nn.functional.cross_entropy`` of the logits in float32, what the z-loss adds, and what is asked for besides."""
    wide, classes = capped(widened(x), softcap), min(1, x.ndim - 1)
    indices = not target.is_floating_point()
    loss = F.cross_entropy(
        wide,
        target.long() if indices else widened(target),
        None if weight is None else widened(weight),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if not (z_loss or return_lse or return_count):
        return [loss]
    lse = wide.logsumexp(classes)
    kept = target != ignore_index if indices else torch.ones_like(lse, dtype=torch.bool)
    count = kept.sum(dtype=wide.dtype)
    if z_loss:
        squares = z_loss * lse.square().masked_fill(~kept, 0.0)
        loss = loss + (squares if reduction == "none" else squares.sum() / (count if reduction == "mean" else 1))
    return [loss, *([lse] if return_lse else []), *([count] if return_count else [])]


def cross_entropy_backward(
    dloss: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    count: torch.Tensor | None,
    dlse: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    first: int,
    classes: int,
) -> torch.Tensor:
    """The gradient of the logits of rows, (M, N), in float32 (float64 for float64), rounded at the end."""
    wide, kept = capped(widened(x), softcap), target != ignore_index
    factor = torch.where(kept, dloss if count is None else dloss / count, 0.0)
    along = factor * (1 + 2 * z_loss * lse)
    if dlse is not None:
        along = along + dlse
    dx = (wide - lse[:, None]).exp() * along[:, None] - (factor * (label_smoothing / classes))[:, None]
    place = target.long() - first
    here = (place >= 0) & (place < x.shape[1])
    pull = torch.where(here, factor * (1 - label_smoothing), 0.0)
    dx = dx.scatter_add(1, torch.where(here, place, 0)[:, None], -pull[:, None])
    if softcap is not None:
        dx = dx * (1 - (wide / softcap).square())
    return dx.to(x.dtype).contiguous()
