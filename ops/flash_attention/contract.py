"""What attention and its gradients ask of the arguments that they share."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.flops import product
from kpt.ops.registry import WHOLE, Sharding
from kpt_dsl.language import SMALLEST_POSITIVE

LARGEST_HEAD_DIM = 256
"""The kernels keep a whole head of queries, keys and outputs on chip."""


def check(op: str, q: Any, k: Any, v: Any, causal: Any, scale: Any, window: Any, key_lengths: Any) -> None:
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
    checks.same_device(op, "q", q, k=k, v=v, key_lengths=key_lengths)
    checks.flag(op, "causal", causal)
    if scale is not None:
        checks.number(op, "scale", scale)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int | torch.SymInt) or window < 1):
        checks.reject(op, "window", repr(window), "None, or a whole number of keys, 1 or more")
    if key_lengths is not None:
        checks.shape(op, "key_lengths", key_lengths, (batch,), "(batch,)")
        checks.dtype(op, "key_lengths", key_lengths.dtype, (torch.int32,))


def why_not(q: torch.Tensor, v: torch.Tensor, scale: float | None) -> str | None:
    """Why the kernels do not serve a call, or None."""
    if max(q.shape[3], v.shape[3]) > LARGEST_HEAD_DIM:
        return f"the head dim is above {LARGEST_HEAD_DIM}"
    if scale is not None and math.isnan(scale):
        return "scale is NaN"
    return wide_dtype(q)


def flops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, along_keys: int, along_values: int) -> int:
    """Of so many products of all queries with all keys along the head dim of keys and that of values, as PyTorch counts them:
    what a mask hides is counted as well."""
    batch, heads, queries, head_dim = q.shape
    return batch * heads * product(queries, k.shape[2], along_keys * head_dim + along_values * v.shape[3])


def shardings(size: int, q: torch.Tensor, k: torch.Tensor, outputs: int, tensors: Sequence[bool]) -> Iterator[Sharding]:
    """By batch entries and, where each of ``size`` processes then has whole groups of heads, by heads.

    ``tensors``: which arguments have both dims; of the others, the lengths of keys are dealt out with the batch.
    """
    yield Sharding((0,) * outputs, (0,) * len(tensors))
    if not q.shape[1] % size and not k.shape[1] % size:
        yield Sharding((1,) * outputs, tuple(1 if t else WHOLE for t in tensors))


def positive(q: torch.Tensor, scale: float | None) -> tuple[torch.Tensor, float]:
    """Queries and a scale above zero of the same scores. Kernels mask before they scale, which another scale turns into NaN."""
    found = scale_of(q, scale)
    return (q, found) if found >= SMALLEST_POSITIVE else (q * found, 1.0)


def scale_of(q: torch.Tensor, scale: float | None) -> float:
    """What scores are multiplied with: 1 / sqrt(D) unless given."""
    default: float = q.shape[3] ** -0.5
    return default if scale is None else scale


def window_of(q: torch.Tensor, k: torch.Tensor, window: int | None) -> int | None:
    """The window, at most as wide as matters: kernels count in 32 bits, and tensors compare in 64."""
    return None if window is None else min(window, max(q.shape[2], k.shape[2]))


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the log-sum-exp, and of what is made on the way, for queries of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
