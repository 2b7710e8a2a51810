"""A small GPT: RMS norm before each part, rotary positions, grouped-query causal attention, gated SiLU MLP, tied head.

Knows neither kpt nor how it is trained. The parts that kpt has kernels for come in as ``Ops``; the rest is PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256
"""The vocabulary."""

ROTARY_BASE = 10000.0

EPS = 1e-6


@dataclass(frozen=True)
class Ops:
    """What a model computes with.

    ``rms_norm(x, weight)`` over the last dim; ``gated_silu(gate, up)``, of one shape; ``rotary(q, k, cos, sin)``, the first and
    the second halves of heads turned by (S, D) angles; ``attention(q, k, v)``, causal, of (B, H, S, D) queries and
    (B, G, S, D) keys and values; ``cross_entropy(logits, targets)``, the mean in float32, of (N, C) and (N,).
    """

    rms_norm: Callable[[Tensor, Tensor], Tensor]
    gated_silu: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """Extents: ``width`` of the residual stream, ``hidden`` of the MLP, ``length`` of a sequence, in bytes of text."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    length: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, size: Size, ops: Ops) -> None:
        super().__init__()
        self.ops, self.head_dim = ops, size.head_dim
        self.attention_norm = nn.Parameter(torch.ones(size.width))
        self.q = nn.Linear(size.width, size.heads * size.head_dim, bias=False)
        self.k = nn.Linear(size.width, size.kv_heads * size.head_dim, bias=False)
        self.v = nn.Linear(size.width, size.kv_heads * size.head_dim, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(size.width))
        self.gate = nn.Linear(size.width, size.hidden, bias=False)
        self.up = nn.Linear(size.width, size.hidden, bias=False)
        self.down = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self._attention(self.ops.rms_norm(x, self.attention_norm), rotation)
        h = self.ops.rms_norm(x, self.mlp_norm)
        return x + self.down(self.ops.gated_silu(self.gate(h), self.up(h)))

    def _attention(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = self.ops.rotary(q, k, *rotation)
        o = self.ops.attention(q, k, v)
        return self.out(o.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """Bytes (B, S) in, logits (B, S, 256) out, for S up to ``size.length``. A seed gives the same weights on every device."""

    rotation: Tensor

    def __init__(self, size: Size, ops: Ops, seed: int) -> None:
        super().__init__()
        self.ops = ops
        self.embedding = nn.Embedding(BYTES, size.width)
        self.blocks = nn.ModuleList(Block(size, ops) for _ in range(size.layers))
        self.norm = nn.Parameter(torch.ones(size.width))
        self.register_buffer("rotation", rotations(size.length, size.head_dim), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # as GPT-2: what is added to the stream starts smaller, the deeper the model
                deep = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / ((2 * size.layers) ** 0.5 if deep else 1.0)
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        rotation = self.rotation[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, rotation)
        return F.linear(self.ops.rms_norm(x, self.norm), self.embedding.weight)

    def loss(self, stretches: Tensor) -> Tensor:
        """Mean cross entropy, in nats a byte, of each byte given those before it. ``stretches``: (B, S + 1)."""
        stretches = stretches.long()
        return self.ops.cross_entropy(self(stretches[:, :-1]).flatten(0, 1), stretches[:, 1:].flatten())


def rotations(length: int, head_dim: int) -> Tensor:
    """Cosines and sines of every position, (2, length, head_dim), float32; both halves of a head are turned by the same angles.
    Su et al. 2021, arXiv:2104.09864."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])
