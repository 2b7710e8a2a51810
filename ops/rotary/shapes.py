"""Shapes of rotary position embeddings that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("B", "H", "G", "T", "D", "R")
"""B batch entries of T positions, H heads of queries and G of keys, each D wide, of which R columns are turned."""

SHAPES = (
    Shape("llama-1b", {"B": 4, "H": 32, "G": 8, "T": 2048, "D": 64, "R": 64}),
    Shape("llama-8b", {"B": 1, "H": 32, "G": 8, "T": 4096, "D": 128, "R": 128}),
    Shape("llama-8b", {"B": 16, "H": 32, "G": 8, "T": 1, "D": 128, "R": 128}),
    Shape("glm-9b", {"B": 1, "H": 32, "G": 2, "T": 4096, "D": 128, "R": 64}, flags={"interleaved": True}),
)

TRAINED = tuple(shape for shape in SHAPES if shape.dims["T"] > 1)
"""Those that training has: not the decoding of one token."""


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Random queries and keys as projections give them, (B, T, heads, D) transposed, and angles of their positions."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    b, h, g, t, d, r = (dims[name] for name in DIMS)
    angle = torch.outer(torch.arange(t, device=device), 10000.0 ** -(torch.arange(0, r, 2, device=device) / r))
    angle = angle.repeat_interleave(2, 1) if interleaved else torch.cat((angle, angle), 1)
    q, k = (randn(b, t, heads, d).transpose(1, 2) for heads in (h, g))
    return q, k, angle.cos().to(q.dtype)[None], angle.sin().to(q.dtype)[None], interleaved
