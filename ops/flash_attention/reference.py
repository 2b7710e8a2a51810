"""Attention in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback.

Where no log-sum-exp is asked for, PyTorch's own fused attention does the work.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kpt.ops.eager import PLAIN, is_transformed
from kpt.ops.flash_attention import contract

FUSED_BYTES = 16
"""What PyTorch's fused attention loads at once."""


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float | None,
    window: int | None,
    key_lengths: torch.Tensor | None,
    return_lse: bool,
) -> list[torch.Tensor]:
    """[o], or [o, lse]; o as ``empty_output`` lays it out."""
    if q.layout == torch.strided and q.is_nested:  # which has no shape to ask for, nor any mask in PyTorch
        return [F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)]
    queries, keys = q.shape[2], k.shape[2]
    window = contract.window_of(q, k, window)
    k, v = (only_keys(t, key_lengths) for t in (k, v))
    # PyTorch's own is_causal aligns top left; a single query sees every key.
    masked = window is not None or key_lengths is not None or (causal and queries > 1 and queries != keys)
    allowed = allowed_keys(queries, keys, q.device, causal, window, key_lengths) if masked or return_lse else None
    if return_lse and allowed is not None:
        o, lse = _with_lse(q, k, v, scale, allowed)
        return [_laid_out(o, empty_output(q, v)), lse]
    is_causal = bool(causal and allowed is None and queries > 1)
    # PyTorch masks by -inf before it scales, which a scale of 0 or less turns into NaN or +inf: scale the queries instead.
    scaled, scale = (q * scale, 1.0) if scale is not None and scale <= 0 else (q, scale)
    if not q.numel():  # PyTorch 2.11 gives None for it on a GPU
        o = (q.sum(-1, keepdim=True) * (k.sum() + v.sum())).expand(*q.shape[:3], v.shape[3])
        return [_laid_out(o, empty_output(q, v))]
    scaled, k, v = map(_readable, (scaled, k, v))
    o = F.scaled_dot_product_attention(
        scaled, k, v, attn_mask=allowed, is_causal=is_causal, scale=scale, enable_gqa=bool(q.shape[1] != k.shape[1])
    )
    return [_laid_out(o, empty_output(q, v))]


def flash_attention_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    dlse: torch.Tensor | None,
    causal: bool,
    scale: float | None,
    window: int | None,
    key_lengths: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """The needed ones of dq, dk and dv, from the probabilities that the log-sum-exp gives back; each laid out as its input."""
    wide = contract.lse_dtype(q.dtype)
    window = contract.window_of(q, k, window)
    k, v = (only_keys(t, key_lengths) for t in (k, v))
    scale = contract.scale_of(q, scale)
    kv_heads = max(1, k.shape[1])
    keys, values = (t.to(wide).repeat_interleave(q.shape[1] // kv_heads, dim=1) for t in (k, v))
    queries, up = q.to(wide), do.to(wide)
    allowed = allowed_keys(q.shape[2], k.shape[2], q.device, causal, window, key_lengths)
    shift = lse.masked_fill(lse == -torch.inf, 0.0)[..., None]
    p = (queries @ keys.mT * scale - shift).masked_fill(~allowed, -torch.inf).exp()
    gradients = []
    if needed[0] or needed[1]:
        delta = (o.to(wide) * up).sum(-1, keepdim=True)
        if dlse is not None:
            delta = delta - dlse[..., None]
        ds = p * (up @ values.mT - delta) * scale
    if needed[0]:
        gradients.append((ds @ keys).to(q.dtype))
    if needed[1]:
        gradients.append(_summed(ds.mT @ queries, k))
    if needed[2]:
        gradients.append(_summed(p.mT @ up, v))
    like = [t for t, n in zip((q, k, v), needed, strict=True) if n]
    return [_laid_out(gradient, empty_like(t)) for gradient, t in zip(gradients, like, strict=True)]


def _readable(t: torch.Tensor) -> torch.Tensor:
    """A tensor as PyTorch's fused attention reads it on a GPU, 16 bytes at a time: a copy, where its elements lie otherwise.

    PyTorch 2.11 does not always look: on an H200 misaligned keys ended the context, or gave NaN.
    """
    if t.device.type != "cuda" or type(t) not in PLAIN or is_transformed():
        return t
    step = FUSED_BYTES // t.element_size()
    regular = t.stride(-1) == 1 and all(s % step == 0 for s in t.stride()[:-1])
    return t if regular and t.data_ptr() % FUSED_BYTES == 0 else t.clone(memory_format=torch.contiguous_format)


def _summed(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What query heads, (B, H, N, D), add to the gradient of the key-value head that they share."""
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2).to(like.dtype) if like.numel() else torch.zeros_like(like)


def only_keys(t: torch.Tensor, key_lengths: torch.Tensor | None) -> torch.Tensor:
    """Keys or values without what lies behind ``key_lengths``: memory that nobody has written there may hold NaN."""
    if key_lengths is None:
        return t
    behind = torch.arange(t.shape[2], device=t.device) >= key_lengths[:, None]
    return t.masked_fill(behind[:, None, :, None], 0.0)


def allowed_keys(
    queries: int,
    keys: int,
    device: torch.device,
    causal: bool,
    window: int | None,
    key_lengths: torch.Tensor | None,
) -> torch.Tensor:
    """Which keys each query sees, True where it does, broadcastable to (B, H, M, N). Query i stands at key i + N - M."""
    j = torch.arange(keys, device=device)
    ahead = torch.arange(queries, device=device)[:, None] + (keys - queries) - j
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        allowed = allowed & (ahead >= 0)
    if window is not None:
        allowed = allowed & (ahead.abs() < window)
    if key_lengths is not None:
        allowed = allowed & (j < key_lengths[:, None, None, None])
    return allowed


def _with_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // max(1, k.shape[1])
    k, v = (t.to(compute).repeat_interleave(group, dim=1) for t in (k, v))
    scores = (q.to(compute) * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    # Rows without any key keep finite scores, so that no NaN reaches a gradient, and are blanked at the end.
    blank = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~(allowed | blank), -torch.inf)
    lse = torch.logsumexp(scores, dim=-1, keepdim=True)
    o = ((scores - lse).exp() @ v).masked_fill(blank, 0.0)
    return o.to(q.dtype), lse.masked_fill(blank, -torch.inf).squeeze(-1)


def empty_output(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Room for o: in the memory order of q, contiguous where the last dim of q is not dense."""
    like = q if q.shape[3] == v.shape[3] else q[..., :1].expand(*q.shape[:3], v.shape[3])
    return empty_like(like, q.stride(3) == 1)


def empty_like(t: torch.Tensor, ordered: bool | None = None) -> torch.Tensor:
    """Room in the memory order of a tensor, contiguous where its last dim is not dense, or it is not to be ``ordered``."""
    ordered = t.stride(3) == 1 if ordered is None else ordered
    return torch.empty_like(t, memory_format=torch.preserve_format if ordered else torch.contiguous_format)


def _laid_out(o: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    if is_transformed():  # what memory there is, is functorch's business, which does not follow writes into it
        return o
    return o if o.stride() == wanted.stride() else wanted.copy_(o)
