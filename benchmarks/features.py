"""What scores may have beside, each alone: a soft cap, sinks, a bias that is added, ALiBi, a mask of bools; and none of them.

4 batch entries of 4096 tokens, causal, 32 heads on 8, head dim 128, bf16, forward. FlexAttention, compiled, computes the same;
a sink is one of its log-sum-exp behind it, as models write it. cuDNN stands beside where it knows the feature.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peers
from benchmarks.case import OpCase, Run
from kpt import ops
from kpt.ops import registry
from kpt.ops.flash_attention.scores import Scores

TITLE = "Attention with what models add to it, causal, bf16 (half the square)"

BATCH, HEADS, GROUPS, LENGTH, HEAD_DIM = 4, 32, 8, 4096, 128

FEATURES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "softcap": {"softcap": 30.0},
    "sinks": {"sinks": True},
    "bias": {"mask": "added"},
    "alibi": {"alibi": True},
    "mask": {"mask": "seen"},
}
"""As the registered inputs of the op know them."""


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for name in FEATURES:
        yield name, partial(case, name, BATCH, HEADS, GROUPS, LENGTH, HEAD_DIM)


def case(
    name: str, batch: int, heads: int, groups: int, length: int, head_dim: int, device: str = "cuda"
) -> OpCase:
    dims = {"B": batch, "H": heads, "G": groups, "M": length, "N": length, "D": head_dim}
    op, flags = registry.get("flash_attention"), {"causal": True, **FEATURES[name]}
    q, k, v, *others = op.arguments(dims, "bf16", device, **flags)
    scores, _ = Scores.split("flash_attention", others)
    given = {key: value for key, value in scores._asdict().items() if value is not None and key != "ahead"}

    def kpt() -> object:
        return ops.flash_attention(q, k, v, **given)

    def launches() -> tuple[str, ...]:
        return tuple(kernel.kernel for kernel in ops.explain("flash_attention", q, k, v, **given).kernels)

    others_of: dict[str, Callable[[], Run]] = {"FlexAttention": partial(_flex, q, k, v, given)}
    if name in ("none", "bias", "mask"):
        others_of["SDPA cuDNN"] = partial(_cudnn, q, k, v, given.get("mask"))
    found, missing = peers.available(others_of)
    work = 2 * batch * heads * length * length * head_dim
    return OpCase(
        name, tuple(op.instances(dims, "bf16", **flags)), {"kpt": kpt}, work, "TFLOP/s", found, missing=missing,
        launches=launches,
    )  # fmt: skip


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: Mapping[str, Any]) -> Run:
    """FlexAttention; the mask of blocks is made before."""
    from torch.nn.attention import flex_attention as flex

    cap, sinks, mask, slopes = (given.get(name) for name in ("softcap", "sinks", "mask", "alibi_slopes"))
    bias = None if mask is None or mask.dtype == torch.bool else mask

    def score(s: Any, b: Any, h: Any, m: Any, n: Any) -> Any:
        if cap is not None:
            s = cap * torch.tanh(s / cap)
        if slopes is not None:
            s = s - slopes[h] * (m - n).abs()
        return s if bias is None else s + bias[b, 0, m, n]

    def causal(b: Any, h: Any, m: Any, n: Any) -> Any:
        return m >= n

    def seen(b: Any, h: Any, m: Any, n: Any) -> Any:
        assert mask is not None
        return (m >= n) & mask[b, 0, m, n]

    own = mask is not None and bias is None
    blocks = torch.compile(flex.create_block_mask)(
        seen if own else causal, q.shape[0] if own else None, None, q.shape[2], k.shape[2], device=str(q.device)
    )
    changed = None if cap is None and slopes is None and bias is None else score

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if sinks is None:
            o = flex.flex_attention(q, k, v, score_mod=changed, block_mask=blocks, enable_gqa=True)
            assert isinstance(o, torch.Tensor)
            return o
        o, lse = flex.flex_attention(q, k, v, score_mod=changed, block_mask=blocks, enable_gqa=True, return_lse=True)
        return o * torch.sigmoid(lse - sinks[:, None])[..., None].to(o.dtype)

    return peers.compiled(attention, lambda fast: peers.forward(fast, q, k, v))


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> Run:
    """With a mask, causality is part of it, which is made before."""
    if mask is not None:
        length = q.shape[2]
        ahead = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        mask = mask.masked_fill(ahead, False if mask.dtype == torch.bool else -torch.inf)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)

    return peers.forward(attention, q, k, v)
