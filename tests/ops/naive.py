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
    window: int | None = None,
    key_lengths: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse) in float64, one query at a time."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    o = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // kv_heads)
            for i in range(queries):
                position = i + keys - queries
                seen = [
                    j
                    for j in range(keys if key_lengths is None else min(keys, int(key_lengths[b])))
                    if (not causal or j <= position) and (window is None or abs(position - j) < window)
                ]
                if seen:
                    scores = scale * (k[b, g, seen] @ q[b, h, i])
                    lse[b, h, i] = torch.logsumexp(scores, 0)
                    o[b, h, i] = torch.softmax(scores, 0) @ v[b, g, seen]
    return o, lse


def activation(name: str, x: torch.Tensor) -> torch.Tensor:
    """An activation from its formula, element by element."""
    formulas = {
        "none": lambda t: t,
        "relu": lambda t: max(t, 0.0),
        "gelu": lambda t: t * 0.5 * (1 + math.erf(t / math.sqrt(2))),
        "gelu_tanh": lambda t: 0.5 * t * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))),
        "silu": lambda t: t / (1 + math.exp(-t)),
    }
    return torch.tensor([formulas[name](float(t)) for t in x.double().flatten()], dtype=torch.float64).view(x.shape)


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
