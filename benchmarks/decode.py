"""Attention of few queries over many keys, as in decoding: 32 heads on 8, head dim 128, bf16, through the op, in a CUDA graph.

A call reads every key and value that counts once, and little else: a row's rate is those bytes a second. Where entries have
lengths of their own, PyTorch gets them as a mask, and reads all; beside stands what kpt does of entries that all have the mean
of these lengths, so that as many keys count and none are left out. Where keys lie in pages, in any order, kpt is held against
itself with the same keys in one piece.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend

from benchmarks import peers
from benchmarks.case import OpCase, Run
from kpt import ops
from kpt.ops import registry

TITLE = "Attention of few queries, bf16 (bytes of the keys and values that count)"

HEADS, GROUPS, HEAD_DIM = 32, 8, 128

SHAPES = ((1, 1, 32768), (16, 1, 8192), (64, 1, 2048), (1, 1, 131072), (16, 4, 8192))
"""Batch entries, queries, keys."""

SEED = 4
"""Of the lengths. By this one about half the keys count, also where one entry is all there is."""

AS_MANY = "as many keys, all of one length"

PAGES = (16, 64)
"""Keys of a page."""


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for batch, queries, keys in SHAPES:
        for lengths in (False, True):
            name = f"B{batch} {queries}x{keys}" + (" lengths" if lengths else "")
            yield name, partial(case, name, batch, HEADS, GROUPS, queries, keys, HEAD_DIM, lengths)
        for page in PAGES:
            name = f"B{batch} {queries}x{keys} paged {page}"
            yield name, partial(paged, name, batch, HEADS, GROUPS, queries, keys, HEAD_DIM, page)


def case(
    name: str, batch: int, heads: int, groups: int, queries: int, keys: int, head_dim: int, lengths: bool, device: str = "cuda"
) -> OpCase:
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q = randn(batch, heads, queries, head_dim)
    k, v = (randn(batch, groups, keys, head_dim) for _ in range(2))
    drawn = torch.randint(1, keys + 1, (batch,), generator=torch.Generator().manual_seed(SEED))
    key_lengths = drawn.to(device, torch.int32) if lengths else None
    count = int(drawn.sum()) if lengths else batch * keys

    def kpt() -> object:
        return ops.flash_attention(q, k, v, key_lengths=key_lengths)

    def launches() -> tuple[str, ...]:
        return tuple(kernel.kernel for kernel in ops.explain("flash_attention", q, k, v, key_lengths=key_lengths).kernels)

    dims = {"B": batch, "H": heads, "G": groups, "M": queries, "N": keys, "D": head_dim}
    flags = {"key_lengths": True} if lengths else {}
    problems = registry.get("flash_attention").instances(dims, "bf16", **flags)
    found, missing = peers.available(_masked(q, k, v, key_lengths) if key_lengths is not None else _dense(q, k, v))
    if lengths:
        whole = (t[:, :, : round(count / batch)].contiguous() for t in (k, v))
        found[AS_MANY] = partial(ops.flash_attention, q, *whole)
    work = 2 * count * groups * head_dim * q.element_size()
    bound = frozenset({AS_MANY})
    return OpCase(name, tuple(problems), {"kpt": kpt}, work, "GB/s", found, bound, missing, launches)


def paged(
    name: str, batch: int, heads: int, groups: int, queries: int, keys: int, head_dim: int, page: int, device: str = "cuda"
) -> OpCase:
    """All entries have all ``keys``, a multiple of ``page``."""
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q = randn(batch, heads, queries, head_dim)
    k, v = (randn(batch * keys // page, page, groups, head_dim) for _ in range(2))
    table = torch.randperm(len(k), dtype=torch.int32, device=device).view(batch, -1)
    lengths = torch.full((batch,), keys, dtype=torch.int32, device=device)
    whole = [t[table.long()].flatten(1, 2).transpose(1, 2).contiguous() for t in (k, v)]
    tokens = {"cache_lengths": lengths, "causal": True}

    def kpt() -> object:
        return ops.flash_attention(q, k, v, block_table=table, **tokens)

    def launches() -> tuple[str, ...]:
        return tuple(kernel.kernel for kernel in ops.explain("flash_attention", q, k, v, block_table=table, **tokens).kernels)

    dims = {"B": batch, "H": heads, "G": groups, "M": queries, "N": keys, "D": head_dim}
    problems = registry.get("flash_attention").instances(dims, "bf16", causal=True, page=page)
    peer = {"the same, dense": partial(ops.flash_attention, q, *whole, **tokens)}
    work = 2 * batch * keys * groups * head_dim * q.element_size()
    return OpCase(name, tuple(problems), {"kpt": kpt}, work, "GB/s", peer, launches=launches)


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable[[], Run]]:
    backends = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
    return {name: partial(peers.forward, peers.sdpa(backend, False, gqa=True), q, k, v) for name, backend in backends.items()}


def _masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_lengths: torch.Tensor
) -> dict[str, Callable[[], Run]]:
    seen = (torch.arange(k.shape[2], device=k.device) < key_lengths[:, None])[:, None, None]

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)

    return {"SDPA with a mask": partial(peers.forward, masked, q, k, v)}
