"""The ops in plain float64 loops, written from their definitions: what the references are held against."""

import math
from collections.abc import Sequence

import torch


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | tuple[int, int] | None = None,
    key_lengths: Sequence[int] | None = None,
    softcap: float | None = None,
    mask: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    key_starts: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse) in float64, one query at a time."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    o = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    behind, ahead = (window - 1, window - 1) if isinstance(window, int) else window or (-1, -1)
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.double().expand(batch, heads)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // kv_heads)
            for i in range(queries):
                position = i + keys - queries
                seen = [
                    j
                    for j in range(
                        0 if key_starts is None else max(0, int(key_starts[b])),
                        keys if key_lengths is None else min(keys, int(key_lengths[b])),
                    )
                    if (not causal or j <= position)
                    and (behind < 0 or position - j <= behind)
                    and (ahead < 0 or j - position <= ahead)
                    and (mask is None or bool(mask[b, h, i, j] if mask.dtype == torch.bool else mask[b, h, i, j] > -1e38))
                ]
                scores = scale * (k[b, g, seen] @ q[b, h, i])
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if alibi_slopes is not None:
                    scores = scores - alibi_slopes[b, h] * (position - torch.tensor(seen)).abs()
                if mask is not None and mask.dtype != torch.bool:
                    scores = scores + mask[b, h, i, seen].double()
                if sinks is not None:
                    scores = torch.cat((scores, sinks[h : h + 1].double()))
                if len(scores):
                    lse[b, h, i] = torch.logsumexp(scores, 0)
                    o[b, h, i] = torch.softmax(scores, 0)[: len(seen)] @ v[b, g, seen]
    return o, lse


def layer_norm(
    x: torch.Tensor, dims: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Over the last ``dims`` dims."""
    axes = tuple(range(-dims, 0))
    x = x.double()
    centred = x - x.mean(axes, keepdim=True)
    y = centred / (centred.pow(2).mean(axes, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


def rms_norm(x: torch.Tensor, dims: int, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Over the last ``dims`` dims."""
    x = x.double()
    y = x / (x.pow(2).mean(tuple(range(-dims, 0)), keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight.double()
