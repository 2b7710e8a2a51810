"""Attention forward, 16k tokens, H * D = 2048, against PyTorch's three and, where installed, FlashAttention CuTe."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import peers
from benchmarks.case import Case
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl.instance import Instance

TITLE = "Attention forward, bf16 (causal counted at half the work)"

TOKENS, WIDTH = 16384, 2048


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for head_dim in (128, 64):
        for length in (4096, 16384):
            for causal in (False, True):
                name = f"D{head_dim} S{length // 1024}k" + (" causal" if causal else "")
                yield name, partial(case, name, TOKENS // length, WIDTH // head_dim, length, head_dim, causal)


def case(name: str, batch: int, heads: int, length: int, head_dim: int, causal: bool, device: str = "cuda") -> Case:
    q, k, v = (torch.randn(batch, heads, length, head_dim, device=device, dtype=torch.bfloat16) for _ in range(3))
    arrays = flash_attention_fwd.defaults | dict(
        q=q, k=k, v=v, key_lengths=None, o=torch.empty_like(q), lse=torch.empty(q.shape[:3], device=device),
        scale=head_dim**-0.5, window=None, causal=causal,
    )  # fmt: skip
    problem = Instance.bind(flash_attention_fwd, arrays)
    found, missing = peers.available(peers.attentions(peers.forward, causal, q, k, v))
    return Case(name, problem, arrays, flops(q, causal), "TFLOP/s", found, missing=missing)


def flops(q: torch.Tensor, causal: bool) -> float:
    """Of the two products, of which causality takes half."""
    batch, heads, length, head_dim = q.shape
    return 4 * batch * heads * length * length * head_dim / (2 if causal else 1)
