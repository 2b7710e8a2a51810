"""What attention and its gradients ask of the arguments that they share."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.flash_attention.scores import Scores
from kpt.ops.flops import product
from kpt.ops.registry import SUM, WHOLE, Placed, Sharding

LARGEST_HEAD_DIM = 256
"""The kernels keep a whole head of queries, keys and outputs on chip."""


def check(op: str, q: Any, k: Any, v: Any, scores: Scores) -> None:
    """Raises InputError, in the name of ``op``, for arguments that do not fit."""
    checks.rank(op, "q", q, (4,), "rank 4, (batch, heads, queries, head dim)")
    checks.rank(op, "k", k, (4,), "rank 4, (batch, key-value heads, keys, head dim)")
    (batch, heads, _, head_dim), (_, kv_heads, keys, _) = q.shape, k.shape
    if k.shape[0] != batch or k.shape[3] != head_dim:
        checks.reject(op, "k", checks.shape_of(k), f"the batch and head dim of q, ({batch}, heads, keys, {head_dim})")
    checks.rank(op, "v", v, (4,), "rank 4, (batch, key-value heads, keys, head dim of values)")
    if v.shape[:3] != k.shape[:3]:
        accepted = f"the batch, heads and keys of k, ({batch}, {kv_heads}, {keys}, any head dim)"
        checks.reject(op, "v", checks.shape_of(v), accepted)
    if heads % kv_heads if kv_heads else heads:
        checks.reject(op, "q", f"of {heads} heads", f"a multiple of the {kv_heads} key-value heads of k")
    checks.dtype(op, "q", q.dtype, FLOATS)
    checks.same_dtype(op, "q", q, k=k, v=v)
    checks.same_device(op, "q", q, k=k, v=v)
    scores.check(op, q, k)


def why_not(q: torch.Tensor, v: torch.Tensor, scores: Scores) -> str | None:
    """Why the kernels do not serve a call, or None."""
    if max(q.shape[3], v.shape[3]) > LARGEST_HEAD_DIM:
        return f"the head dim is above {LARGEST_HEAD_DIM}"
    beside = [t for t in (scores.mask, scores.sinks) if t is not None and t.dtype != torch.bool]
    return scores.why_not() or wide_dtype(q, *beside)


def flops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, along_keys: int, along_values: int) -> int:
    """Of so many products of all queries with all keys along the head dim of keys and that of values, as PyTorch counts them:
    what a mask hides is counted as well."""
    batch, heads, queries, head_dim = q.shape
    return batch * heads * product(queries, k.shape[2], along_keys * head_dim + along_values * v.shape[3])


def shardings(
    size: int, q: torch.Tensor, k: torch.Tensor, scores: Scores, outputs: Sequence[str], tensors: Sequence[bool]
) -> Iterator[Sharding]:
    """By batch entries and, where each of ``size`` processes then has whole groups of heads, by heads.

    ``outputs``: what is given, by name; what has the name of an argument of the scores is its gradient. ``tensors``: which
    arguments ahead of the scores' have both dims.
    """
    for dim in (0, 1):
        if dim and (q.shape[1] % size or k.shape[1] % size):
            return
        along = {name: _along(q, scores, name, dim) for name in Scores._fields}
        given = [SUM if (placed := along.get(name, dim)) == WHOLE else placed for name in outputs]
        yield Sharding(given, [dim if t else WHOLE for t in tensors] + list(Scores._make(along.values()).around(None)))


_RANKS = {"mask": 4, "alibi_slopes": 2, "sinks": 2, "key_lengths": 1, "key_starts": 1, "cache_lengths": 1}
"""How many dims the tensors of the scores stand for, batch entries first, then heads, of which the first may be left out."""


def _along(q: torch.Tensor, scores: Scores, name: str, dim: int) -> Placed:
    """Where an argument of the scores is cut when batch entries (0) or heads (1) are dealt out."""
    tensor = getattr(scores, name)
    if not isinstance(tensor, torch.Tensor):
        return None
    own = dim + tensor.ndim - _RANKS[name]
    return own if 0 <= own < tensor.ndim and tensor.shape[own] == q.shape[dim] else WHOLE


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the log-sum-exp, and of what is made on the way, for queries of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
