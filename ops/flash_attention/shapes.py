"""Attention shapes that models have, and inputs of a given shape."""

import math
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any, Literal

import torch

from kpt.ops import checks
from kpt.ops.dtypes import torch_dtype
from kpt.ops.flash_attention.contract import lse_shape
from kpt.ops.flash_attention.scores import Scores, Window, sides
from kpt.ops.shapes import Shape

DIMS = ("B", "H", "G", "M", "N", "D")
"""Batch entries, query heads, key-value heads, queries, keys, head dim (of values too, unless ``value_dim`` is given)."""

_CAUSAL = {"causal": True}


def _square(batch: int, heads: int, kv_heads: int, length: int, head_dim: int) -> dict[str, int]:
    return {"B": batch, "H": heads, "G": kv_heads, "M": length, "N": length, "D": head_dim}


SHAPES = (
    Shape("minilm", _square(32, 12, 12, 128, 32), "f32", {"key_lengths": True}),
    Shape("bert-base", _square(32, 12, 12, 512, 64), flags={"key_lengths": True}),
    Shape("gpt2", _square(8, 12, 12, 1024, 64), flags=_CAUSAL),
    Shape("llama-8b", _square(1, 32, 8, 4096, 128), flags=_CAUSAL),
    Shape("llama-8b", {"B": 16, "H": 32, "G": 8, "M": 1, "N": 8192, "D": 128}, flags=_CAUSAL),
    Shape("mistral-7b", _square(1, 32, 8, 8192, 128), flags={"causal": True, "window": 4096}),
    Shape("attention", _square(4, 16, 16, 4096, 128)),
    Shape("attention", _square(4, 16, 16, 4096, 128), flags=_CAUSAL),
    Shape("attention", _square(1, 16, 16, 16384, 128)),
    Shape("attention", _square(1, 16, 16, 16384, 128), flags=_CAUSAL),
    Shape("attention", _square(4, 32, 32, 4096, 64)),
    Shape("attention", _square(4, 32, 32, 4096, 64), flags=_CAUSAL),
    Shape("attention", _square(1, 32, 32, 16384, 64)),
    Shape("attention", _square(1, 32, 32, 16384, 64), flags=_CAUSAL),
)


def arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    causal: bool = False,
    window: Window = None,
    key_lengths: bool = False,
    value_dim: int | None = None,
    softcap: float | None = None,
    mask: Literal["seen", "added"] | None = None,
    alibi: bool = False,
    sinks: bool = False,
    key_starts: bool = False,
    cache_lengths: bool = False,
    page: int | None = None,
    packed: bool = False,
) -> tuple[Any, ...]:
    """Random arguments of the op; with ``key_lengths`` or ``key_starts``, every batch entry keeps between half and all of its
    keys. A mask is for all heads; one of bools hides a tenth of the keys. With ``page``, keys lie in pages of so many of a pool
    that has no others, in any order. ``packed``: B entries of random lengths, M queries and N keys each on average."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    for name, number in (("value_dim", value_dim), ("page", page)):
        if number is not None and number < 1:
            checks.reject("flash_attention", name, str(number), "None, or a whole number, 1 or more")
    b, h, g, m, n, d = (dims[name] for name in DIMS)
    shapes = (h, m, d), (g, n, d), (g, n, value_dim or d)
    q, k, v = (randn(b * rows, heads, width) if packed else randn(b, heads, rows, width) for heads, rows, width in shapes)
    ends = torch.cat([torch.zeros(1, device=device), torch.rand(b, device=device).cumsum(0)]) if packed else None
    rows = randn(b, 1, m, n)
    few, ahead = partial(torch.randint, size=(b,), dtype=torch.int32, device=device), sides("flash_attention", window)
    scores = Scores(
        causal,
        window=ahead[0],
        key_lengths=few((n + 1) // 2, n + 1) if key_lengths else None,
        softcap=softcap,
        mask=None if mask is None else rows if mask == "added" else rows > -1.28,
        alibi_slopes=torch.rand(h, device=device) if alibi else None,
        sinks=randn(h) if sinks else None,
        key_starts=few(0, n // 4 + 1) if key_starts else None,
        cache_lengths=few((n + 1) // 2, n + 1) if cache_lengths or page else None,
        cu_seqlens_q=None if ends is None else (ends / ends[-1] * (b * m)).to(torch.int32),
        cu_seqlens_k=None if ends is None else (ends / ends[-1] * (b * n)).to(torch.int32),
        ahead=ahead[1],
    )
    if page is not None:
        most = -(-n // page)
        k, v = (randn(b * most, page, g, width) for width in (d, value_dim or d))
        table = torch.randperm(b * most, dtype=torch.int32, device=device).view(b, most)
        scores = scores._replace(block_table=table)
    return q, k, v, *scores.around(False)


BACKWARD_SHAPES = tuple(shape for shape in SHAPES if shape.dims["M"] > 1)
"""What models are trained on: not the decoding of one token."""


@wraps(arguments)
def backward_arguments(dims: Mapping[str, int], dtype: str, device: str, **flags: Any) -> tuple[Any, ...]:
    """Random arguments of the backward op; probabilities add up to about one."""
    q, k, v, *others = arguments(dims, dtype, device, **flags)
    scores, _ = Scores.split("flash_attention", others)
    do, o = (q.new_empty((*q.shape[:-1], v.shape[-1])).normal_() for _ in range(2))
    lse = torch.full(lse_shape(q), math.log(dims["N"]) + 0.5, device=device)
    added = scores.mask is not None and scores.mask.is_floating_point()
    needed = (True, True, True, scores.sinks is not None, added)
    return do, q, k, v, o, lse, None, *scores.around(needed if any(needed[3:]) else needed[:3])
