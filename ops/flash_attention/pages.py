"""Keys and values that lie in pages of a pool, as vLLM and flash-attn have them: (pages, page size, G, D), and a table, (B, W),
that says of each batch entry which pages hold its keys 0 up to page size, and so on. N is W times the page size."""

from typing import Any, NamedTuple

import torch

from kpt.ops import checks
from kpt.ops.eager import is_transformed
from kpt_dsl.checks import is_on
from kpt_dsl.errors import IndexRangeError


class Keys(NamedTuple):
    """Keys and values as kernels take them."""

    whole: tuple[torch.Tensor | None, torch.Tensor | None]
    """Those in one piece, (B, G, N, D) and (B, G, N, E)."""
    pages: tuple[Any, ...]
    """What kernels take last, None for keys in one piece: table, keys, values, what has N elements, page size."""
    like: torch.Tensor
    """What has the shape of keys in one piece, and other elements."""


def keys_of(k: torch.Tensor, v: torch.Tensor, table: torch.Tensor | None) -> Keys:
    """Keys and values in one piece, or in pages."""
    if table is None:
        return Keys((k, v), (None,) * 5, k)
    batch, groups, keys = extents(k, table)
    like = k[0, :1].transpose(0, 1).expand(batch, groups, keys, k.shape[3])
    return Keys((None, None), (table, k, v, like[0, 0, :, 0], k.shape[1]), like)


def extents(k: torch.Tensor, table: torch.Tensor | None) -> tuple[int, int, int]:
    """B, G and N of keys, in pages or not."""
    if table is None:
        return k.shape[0], k.shape[1], k.shape[2]
    return table.shape[0], k.shape[2], table.shape[1] * k.shape[1]


def check(op: str, q: Any, k: Any, v: Any, table: Any, lengths: Any) -> None:
    """Raises InputError, in the name of ``op``, for pages and tables that do not fit."""
    checks.rank(op, "q", q, (4,), "rank 4, (batch, heads, queries, head dim)")
    checks.rank(op, "k", k, (4,), "rank 4, (pages, page size, key-value heads, head dim)")
    if lengths is None:
        checks.reject(op, "block_table", "given", "one with cache_lengths")
    checks.rank(op, "block_table", table, (2,), "rank 2, (batch, most pages of an entry)")
    checks.dtype(op, "block_table", table.dtype, (torch.int32,))
    checks.same_device(op, "q", q, block_table=table)
    if table.shape[0] != q.shape[0]:
        checks.reject(op, "block_table", checks.shape_of(table), f"the batch of q, ({q.shape[0]}, most pages of an entry)")
    pages, size, groups, head_dim = k.shape
    if not (pages and size) or head_dim != q.shape[3]:
        accepted = f"(pages, page size, key-value heads, {q.shape[3]}), one page or more"
        checks.reject(op, "k", checks.shape_of(k), accepted)
    checks.rank(op, "v", v, (4,), "rank 4, (pages, page size, key-value heads, head dim of values)")
    if v.shape[:3] != k.shape[:3]:
        accepted = f"the pages and heads of k, ({pages}, {size}, {groups}, any head dim)"
        checks.reject(op, "v", checks.shape_of(v), accepted)


def gathered(
    op: str, t: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor | None
) -> torch.Tensor:
    """Keys or values of each batch entry in one piece, (B, G, N, D); behind ``lengths`` and before ``starts`` whatever a page
    holds. Raises IndexRangeError as ``_pages`` does."""
    return t[_pages(op, t, table, lengths, starts)].flatten(1, 2).transpose(1, 2)


def scattered(
    op: str, gradient: torch.Tensor, like: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of pages from that of each batch entry's keys: the sums over entries that have a page in common."""
    wide = torch.promote_types(like.dtype, torch.float32)
    parts = gradient.transpose(1, 2).unflatten(1, (-1, like.shape[1])).flatten(0, 1).to(wide)
    sums = torch.zeros(like.shape, dtype=wide, device=like.device)
    return sums.index_add(0, _pages(op, like, table, lengths, starts).flatten(), parts).to(like.dtype)


def _pages(
    op: str, t: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor | None
) -> torch.Tensor:
    """The table, with the first page where no key counts: anything may stand there. Raises IndexRangeError, in the name of
    ``op``, for a page of another place that the pool does not have, on CPUs and within ``kpt_dsl.checking()``; PyTorch counts
    negative ones from the end."""
    firsts = torch.arange(table.shape[1], device=table.device) * t.shape[1]
    unread = firsts >= lengths[:, None]
    if starts is not None:
        unread = unread | (firsts + t.shape[1] <= starts[:, None])
    found = table.masked_fill(unread, 0).long()
    if type(table) is torch.Tensor and (table.is_cpu or (is_on() and not table.is_meta)) and not is_transformed():
        for entry, place in ((found < 0) | (found >= len(t))).nonzero().tolist():
            was = f"{op}: block_table[{entry}, {place}] is {int(found[entry, place])}"
            raise IndexRangeError(f"{was}; accepted: a page of the pool, from 0 to {len(t) - 1}")
    return found
