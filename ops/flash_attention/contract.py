"""What attention and its gradients ask of the arguments that they share."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.flash_attention import packed, pages
from kpt.ops.flash_attention.scores import Scores
from kpt.ops.flops import product
from kpt.ops.registry import SUM, WHOLE, Placed, Sharding

LARGEST_HEAD_DIM = 256
"""The kernels keep a whole head of queries, keys and outputs on chip."""


def check(op: str, q: Any, k: Any, v: Any, scores: Scores) -> None:
    """Raises InputError, in the name of ``op``, for arguments that do not fit."""
    if scores.cu_seqlens_q is not None:
        packed.check(op, q, k, v, scores)
    elif scores.block_table is not None:
        pages.check(op, q, k, v, scores.block_table, scores.cache_lengths)
    else:
        _check_dense(op, q, k, v)
    heads, kv_heads = q.shape[1], scores.key_extents(k)[1]
    if heads % kv_heads if kv_heads else heads:
        checks.reject(op, "q", f"of {heads} heads", f"a multiple of the {kv_heads} key-value heads of k")
    checks.dtype(op, "q", q.dtype, FLOATS)
    checks.same_dtype(op, "q", q, k=k, v=v)
    checks.same_device(op, "q", q, k=k, v=v)
    scores.check(op, q, k)


def _check_dense(op: str, q: Any, k: Any, v: Any) -> None:
    checks.rank(op, "q", q, (4,), "rank 4, (batch, heads, queries, head dim)")
    checks.rank(op, "k", k, (4,), "rank 4, (batch, key-value heads, keys, head dim)")
    (batch, _, _, head_dim), (entries, kv_heads, keys, width) = q.shape, k.shape
    if entries != batch or width != head_dim:
        checks.reject(op, "k", checks.shape_of(k), f"the batch and head dim of q, ({batch}, heads, keys, {head_dim})")
    checks.rank(op, "v", v, (4,), "rank 4, (batch, key-value heads, keys, head dim of values)")
    if v.shape[:3] != (entries, kv_heads, keys):
        accepted = f"the batch, heads and keys of k, ({batch}, {kv_heads}, {keys}, any head dim)"
        checks.reject(op, "v", checks.shape_of(v), accepted)


def why_not(q: torch.Tensor, v: torch.Tensor, scores: Scores) -> str | None:
    """Why the kernels do not serve a call, or None."""
    if max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD_DIM:
        return f"the head dim is above {LARGEST_HEAD_DIM}"
    beside = [t for t in (scores.mask, scores.sinks) if t is not None and t.dtype != torch.bool]
    return scores.why_not() or wide_dtype(q, *beside)


def flops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, along_keys: int, along_values: int) -> int:
    """Of so many products of all queries with all keys along the head dim of keys and that of values, as PyTorch counts them:
    what a mask hides is counted as well."""
    dense = scores.cu_seqlens_q is None
    pairs = q.shape[0] * q.shape[2] * scores.key_extents(k)[2] if dense else packed.work(q, k, scores)
    return q.shape[1] * product(pairs, 1, along_keys * q.shape[-1] + along_values * v.shape[-1])


def shardings(
    size: int, q: torch.Tensor, k: torch.Tensor, scores: Scores, outputs: Sequence[str], tensors: Sequence[str]
) -> Iterator[Sharding]:
    """By batch entries, unless they are packed, and, where each of ``size`` processes then has whole groups of heads, by heads.

    ``outputs``: what is given, by name; what has the name of an argument is its gradient. ``tensors``: the arguments ahead of
    the scores'. Pages are shared by all batch entries.
    """
    is_packed = scores.cu_seqlens_q is not None
    for dim in (1,) if is_packed else (0, 1):
        if dim and (q.shape[1] % size or scores.key_extents(k)[1] % size):
            return
        along = {name: _along(q, scores, name, dim) for name in Scores._fields}
        own: dict[str, Placed] = {**dict.fromkeys((*outputs, *tensors), dim), **dict.fromkeys(("lse", "dlse"), dim - is_packed)}
        if scores.block_table is not None:
            own |= dict.fromkeys(("k", "v"), 2 if dim else WHOLE)
        given = [SUM if (placed := along.get(name, own[name])) == WHOLE else placed for name in outputs]
        yield Sharding(given, [own[name] for name in tensors] + list(Scores._make(along.values()).around(None)))


_RANKS = {
    "mask": 4, "alibi_slopes": 2, "sinks": 2, "key_lengths": 1, "key_starts": 1, "cache_lengths": 1, "cu_seqlens_q": 1,
    "cu_seqlens_k": 1,
}  # fmt: skip
"""How many dims the tensors of the scores stand for, batch entries first, then heads, of which the first may be left out."""


def _along(q: torch.Tensor, scores: Scores, name: str, dim: int) -> Placed:
    """Where an argument of the scores is cut when batch entries (0) or heads (1) are dealt out."""
    tensor = getattr(scores, name)
    if not isinstance(tensor, torch.Tensor):
        return None
    if name == "block_table":
        return WHOLE if dim else 0
    own = dim + tensor.ndim - _RANKS[name]
    return own if 0 <= own < tensor.ndim and tensor.shape[own] == q.shape[dim] else WHOLE


def lse_shape(q: torch.Tensor) -> Sequence[int]:
    """Of the log-sum-exp: (batch, heads, queries), or (heads, queries) of packed ones."""
    return q.shape[:3] if q.ndim == 4 else (q.shape[1], q.shape[0])


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the log-sum-exp, and of what is made on the way, for queries of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
