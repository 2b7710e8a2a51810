"""Packed attention: entries of different lengths behind one another in one tensor, as flash-attn's ``cu_seqlens`` say.

The kernels are those of dense tensors. They see the packed ones as one batch entry, views of the same memory, and lay their
tiles out by where entries begin.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, rooms
from kpt.ops.flash_attention.kernels import flash_attention_ends
from kpt.ops.flash_attention.scores import Scores
from kpt_dsl.checks import is_on
from kpt_dsl.errors import IndexRangeError

INSTEAD = {
    "key_lengths": "None with cu_seqlens_q: the keys of an entry end where cu_seqlens_k says",
    "key_starts": "None with cu_seqlens_q: the keys of an entry begin where cu_seqlens_k says",
    "cache_lengths": "None with cu_seqlens_q: the keys of an entry end where cu_seqlens_k says",
    "block_table": "None with cu_seqlens_q: packed keys lie in one piece",
    "mask": "None with cu_seqlens_q, which keeps entries apart: causal, window and alibi_slopes count within each",
}
"""What has no place beside ``cu_seqlens_q``, and what to do about it."""

def check(op: str, q: Any, k: Any, v: Any, scores: Scores) -> None:
    """Raises InputError, in the name of ``op``, for shapes that do not fit."""
    for name, accepted in INSTEAD.items():
        if getattr(scores, name) is not None:
            checks.reject(op, name, "given", accepted)
    checks.rank(op, "q", q, (3,), "rank 3, (queries of all entries, heads, head dim), since cu_seqlens_q is given")
    checks.rank(op, "k", k, (3,), "rank 3, (keys of all entries, key-value heads, head dim)")
    if k.shape[2] != q.shape[2]:
        checks.reject(op, "k", checks.shape_of(k), f"the head dim of q, (keys, key-value heads, {q.shape[2]})")
    checks.rank(op, "v", v, (3,), "rank 3, (keys of all entries, key-value heads, head dim of values)")
    if v.shape[:2] != k.shape[:2]:
        checks.reject(op, "v", checks.shape_of(v), f"the keys and heads of k, {(*k.shape[:2], 'any head dim')}")


def batched(t: torch.Tensor) -> torch.Tensor:
    """(rows, heads, width) as (1, heads, rows, width), and what has one number a row, (heads, rows), as (1, heads, rows)."""
    return (t.transpose(0, 1) if t.ndim == 3 else t)[None]


class Ends(NamedTuple):
    """Where groups end: an entry each, one before all and one behind. ``queries``: the groups of all queries, with the keys
    that each sees; ``keys``: those of all keys, with the queries that see each. Pairs (query_ends, key_ends) of int32, of
    None where nothing is packed."""

    queries: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    keys: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)


def ends(launch: Launch, op: str, q: torch.Tensor, k: torch.Tensor, scores: Scores) -> Ends:
    """Made on the device, so that nobody waits for it. Raises IndexRangeError as ``checked`` does on CPUs, and within
    ``kpt_dsl.checking()``."""
    if scores.cu_seqlens_q is None:
        return Ends()
    cu_q, cu_k = scores.cu_seqlens()
    if q.device.type == "cpu" or (is_on() and q.device.type != "meta"):
        checked(op, q, k, scores)
    query_groups, keys, key_groups, queries = made = rooms(cu_q, (cu_q.shape[0] + 2,), 4, torch.int32)
    launch(flash_attention_ends, cu_q, cu_k, *made, q.shape[0], k.shape[0])
    return Ends((query_groups, keys), (queries, key_groups))


def checked(op: str, q: torch.Tensor, k: torch.Tensor, scores: Scores) -> tuple[list[int], list[int]]:
    """Where entries end, as numbers. Raises IndexRangeError, in the name of ``op``, where they do not ascend from 0 or more to
    the number of rows or less."""
    found = [cu.tolist() for cu in scores.cu_seqlens()]
    for cu, name, rows in zip(found, ("cu_seqlens_q", "cu_seqlens_k"), (q, k), strict=True):
        IndexRangeError.check_groups(op, name, cu, rows.shape[0])
    return found[0], found[1]


def entries(op: str, q: torch.Tensor, k: torch.Tensor, scores: Scores) -> Iterator[tuple[slice, slice, Scores]]:
    """The queries and keys of each entry, and its scores, as of a dense call; first and last queries of no entry, without keys.
    Raises IndexRangeError as ``checked`` does."""
    cu_q, cu_k = checked(op, q, k, scores)
    plain, slopes, last = scores._replace(cu_seqlens_q=None, cu_seqlens_k=None), scores.alibi_slopes, len(cu_q) - 2
    around = zip(pairwise([0, *cu_q, q.shape[0]]), pairwise([*cu_k[:1], *cu_k, *cu_k[-1:]]), strict=True)
    for entry, (queries, keys) in enumerate(around, -1):
        if slopes is not None and slopes.ndim == 2:
            plain = plain._replace(alibi_slopes=slopes[min(max(entry, 0), last)] if last >= 0 else None)
        yield slice(*queries), slice(*keys), plain


def is_traced(scores: Scores) -> bool:
    """Whether nobody knows yet where entries end. (A gradient of slopes only the reference's own operations have.)"""
    known = all(type(cu) is torch.Tensor for cu in (scores.cu_seqlens_q, scores.cu_seqlens_k) if cu is not None)
    return not known and (scores.alibi_slopes is None or not scores.alibi_slopes.requires_grad)


def work(q: torch.Tensor, k: torch.Tensor, scores: Scores) -> int:
    """Pairs of a query and a key of one entry, also those that are masked; where nothing but shapes is known, as of entries
    that are all alike."""
    cu_q, cu_k = scores.cu_seqlens()
    if type(cu_q) is torch.Tensor and type(cu_k) is torch.Tensor and not cu_q.is_meta:
        return int((cu_q.diff() * cu_k.diff().to(torch.int64)).sum())
    count = max(1, cu_q.shape[0] - 1)
    return (q.shape[0] // count) * (k.shape[0] // count) * count
