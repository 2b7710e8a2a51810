"""Attention backward alone, 16k tokens, H * D = 2048, by autograd on every side, against the same peers as the forward.

kpt goes the way that was measured to be quicker, and, beside, the one whose sums are made in one order.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import peers
from benchmarks.attention import TOKENS, WIDTH, flops
from benchmarks.case import OpCase, Run
from benchmarks.determinism import deterministic
from kpt import ops
from kpt.ops import registry

TITLE = "Attention backward, bf16 (2.5 times the forward's work, causal half)"

BACKWARD_WORK = 2.5
"""Five products for the forward's two."""


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for head_dim, lengths in ((128, (4096, 16384)), (64, (16384,))):
        for length in lengths:
            for causal in (False, True):
                name = f"D{head_dim} S{length // 1024}k" + (" causal" if causal else "")
                yield name, partial(case, name, TOKENS // length, WIDTH // head_dim, length, head_dim, causal)


def case(name: str, batch: int, heads: int, length: int, head_dim: int, causal: bool, device: str = "cuda") -> OpCase:
    q, k, v, do = (torch.randn(batch, heads, length, head_dim, device=device, dtype=torch.bfloat16) for _ in range(4))

    def measure(attention: peers.Attention, *tensors: torch.Tensor) -> Run:
        *inputs, gradient = tensors
        return peers.backward(attention, gradient, *inputs)

    def kpt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = ops.flash_attention(q, k, v, causal=causal)
        assert isinstance(o, torch.Tensor)
        return o

    def launches() -> tuple[str, ...]:
        lse = torch.empty(q.shape[:3], device=device)
        explained = ops.explain("flash_attention_backward", do, q, k, v, q, lse, causal=causal)
        return tuple(kernel.kernel for kernel in explained.kernels)

    dims = {"B": batch, "H": heads, "G": heads, "M": length, "N": length, "D": head_dim}
    problems = registry.get("flash_attention_backward").instances(dims, "bf16", causal=causal)
    found, missing = peers.available(peers.attentions(measure, causal, q, k, v, do))
    work, ours = BACKWARD_WORK * flops(q, causal), measure(kpt, q, k, v, do)

    def in_one_order() -> object:
        with deterministic():
            return ours()

    ways = {"kpt": ours, "kpt deterministic": in_one_order}
    return OpCase(name, tuple(problems), ways, work, "TFLOP/s", found, missing=missing, launches=launches)
