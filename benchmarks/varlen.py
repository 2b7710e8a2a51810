"""Packed attention: 64 sequences of 100 to 4000 tokens behind one another, causal, 32 heads on 8, head dim 128, bf16.

Forward, and backward alone, by autograd on every side. What kpt does of a dense batch of about as many tokens stands beside:
packed sequences should cost little more for the same products.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from benchmarks import peers
from benchmarks.attention_backward import BACKWARD_WORK
from benchmarks.case import OpCase, Run
from kpt import ops
from kpt.ops import registry
from kpt.ops.flash_attention.scores import Scores

TITLE = "Packed attention, causal, bf16 (half of each sequence's square, 2.5 times the work backward)"

HEADS, GROUPS, HEAD_DIM = 32, 8, 128

SEQUENCES, SHORTEST, LONGEST = 64, 100, 4000

DENSE = (16, 2048)
"""Batch entries, and tokens of each."""


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    drawn = torch.randint(SHORTEST, LONGEST + 1, (SEQUENCES,), generator=torch.Generator().manual_seed(0)).tolist()
    for backward in (False, True):
        for way, lengths, make in (("packed", drawn, packed), ("dense", [DENSE[1]] * DENSE[0], dense)):
            name = f"{len(lengths)} {way}" + (" backward" if backward else "")
            yield name, partial(make, name, lengths, HEADS, GROUPS, HEAD_DIM, backward)


def packed(
    name: str, lengths: Sequence[int], heads: int, groups: int, head_dim: int, backward: bool, device: str = "cuda"
) -> OpCase:
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q, do = (randn(sum(lengths), heads, head_dim) for _ in range(2))
    k, v = (randn(sum(lengths), groups, head_dim) for _ in range(2))
    work = _flops(lengths, heads, head_dim, backward)
    return _case(name, Scores(causal=True, cu_seqlens_q=ends), (do, q, k, v), backward, work, _packed(ends, max(lengths)))


def dense(
    name: str, lengths: Sequence[int], heads: int, groups: int, head_dim: int, backward: bool, device: str = "cuda"
) -> OpCase:
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q, do = (randn(len(lengths), heads, lengths[0], head_dim) for _ in range(2))
    k, v = (randn(len(lengths), groups, lengths[0], head_dim) for _ in range(2))
    backends = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
    others = {name: partial(_measured, peers.sdpa(backend, True, gqa=True)) for name, backend in backends.items()}
    return _case(name, Scores(causal=True), (do, q, k, v), backward, _flops(lengths, heads, head_dim, backward), others)


def _flops(lengths: Sequence[int], heads: int, head_dim: int, backward: bool) -> float:
    """Of the two products, of which causality takes half."""
    return (BACKWARD_WORK if backward else 1) * 2 * heads * head_dim * sum(n * n for n in lengths)


Tensors = tuple[torch.Tensor, ...]
"""The gradient of the result, queries, keys and values."""

Peer = Callable[[Tensors, bool], Run]
"""What measures a peer on these, backward or forward."""


def _case(
    name: str, scores: Scores, tensors: Tensors, backward: bool, work: float, others: dict[str, Peer]
) -> OpCase:
    do, q, k, v = tensors

    def kpt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = ops.flash_attention(q, k, v, causal=True, cu_seqlens_q=scores.cu_seqlens_q)
        assert isinstance(o, torch.Tensor)
        return o

    lse = torch.empty(q.shape[:3] if q.ndim == 4 else (q.shape[1], q.shape[0]), device=q.device)
    op, given = ("flash_attention_backward", (do, q, k, v, q, lse)) if backward else ("flash_attention", (q, k, v))
    positional = (*given, None, *scores.around((True,) * 3)) if backward else (*given, *scores.around(False))

    def launches() -> tuple[str, ...]:
        explained = ops.explain(op, *given, causal=True, cu_seqlens_q=scores.cu_seqlens_q)
        return tuple(kernel.kernel for kernel in explained.kernels)

    problems = dict.fromkeys(registry.get(op).record(positional))
    found, missing = peers.available({name: partial(peer, tensors, backward) for name, peer in others.items()})
    ours = {"kpt": _measured(kpt, tensors, backward)}
    return OpCase(name, tuple(problems), ours, work, "TFLOP/s", found, missing=missing, launches=launches)


def _measured(attention: peers.Attention, tensors: Tensors, backward: bool) -> Run:
    do, *inputs = tensors
    return peers.backward(attention, do, *inputs) if backward else peers.forward(attention, *inputs)


# ------------------------------------------------------------------ who does it as well
def _packed(ends: torch.Tensor, longest: int) -> dict[str, Peer]:
    return {
        "FlexAttention": partial(_flex, ends),
        "varlen_attn": lambda *given: _measured(_varlen_attn(ends, longest), *given),
        "SDPA jagged": lambda *given: _measured(_jagged(ends, longest), *given),
        "flash-attn": lambda *given: _measured(_flash_attn(ends, longest), *given),
    }


def _flex(ends: torch.Tensor, tensors: Tensors, backward: bool) -> Run:
    """FlexAttention with a mask of documents, heads first; the mask is made before."""
    from torch.nn.attention import flex_attention as flex

    count = len(ends) - 1
    document = torch.repeat_interleave(torch.arange(count, device=ends.device), ends.diff())

    def seen(b: Any, h: Any, m: Any, n: Any) -> Any:
        return (document[m] == document[n]) & (m >= n)

    length = len(document)
    mask = torch.compile(flex.create_block_mask)(seen, None, None, length, length, device=str(ends.device))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = flex.flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        assert isinstance(o, torch.Tensor)
        return o

    heads_first = tuple(t.transpose(0, 1)[None].contiguous() for t in tensors)
    run = peers.compiled(attention, lambda fast: _measured(fast, heads_first, backward))
    return lambda: [t[0].transpose(0, 1) for t in peers.as_tensors(run())]


def _varlen_attn(ends: torch.Tensor, longest: int) -> peers.Attention:
    varlen_attn, causal = peers.varlen_attn(causal=True)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = varlen_attn(q, k, v, ends, ends, longest, longest, **causal)
        assert isinstance(o, torch.Tensor)
        return o

    return attention


def _jagged(ends: torch.Tensor, longest: int) -> peers.Attention:
    """PyTorch's attention of a jagged nested tensor."""
    offsets = ends.to(torch.int64)

    def attention(*packed: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(t, offsets, min_seqlen=1, max_seqlen=longest).transpose(1, 2)
            for t in packed
        )
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return o.transpose(1, 2).values()

    return attention


def _flash_attn(ends: torch.Tensor, longest: int) -> peers.Attention:
    """The package flash-attn. Raises ImportError where it is not installed."""
    from flash_attn import flash_attn_varlen_func

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return peers.as_tensors(flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, causal=True))[0]

    return attention
