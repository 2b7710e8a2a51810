"""Shapes of logits that models have, and inputs of a given shape."""

from collections.abc import Mapping
from typing import Any

import torch

from kpt.ops.cross_entropy.reference import capped
from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N")
"""M rows of N classes."""

SHAPES = (
    Shape("llama-8b", {"M": 8192, "N": 128256}),
    Shape("qwen3-8b", {"M": 8192, "N": 151936}),
    Shape("gpt2", {"M": 8192, "N": 50257}),
    Shape("vocabulary", {"M": 8192, "N": 32000}),
    Shape("classes", {"M": 1024, "N": 1000}),
)

IGNORED = -100


def arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
) -> tuple[Any, ...]:
    """Random arguments of the op for M rows of N classes."""
    x = torch.randn(dims["M"], dims["N"], dtype=torch_dtype(dtype), device=device)
    target = torch.randint(dims["N"], (dims["M"],), device=device)
    return x, target, None, IGNORED, reduction, label_smoothing, z_loss, softcap, return_lse, None


def backward_arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Any, ...]:
    """Random arguments of ``cross_entropy_backward``: the gradient of one number stands for all rows, unless ``reduction`` is
    "none"."""
    x, target, *_ = arguments(dims, dtype, device)
    rows = dims["M"]
    dloss = torch.ones(rows if reduction == "none" else (), device=device).expand(rows)
    count = torch.full((), float(rows), device=device) if reduction == "mean" else None
    lse = capped(x.float(), softcap).logsumexp(1)
    return dloss, x, target, lse, count, None, IGNORED, label_smoothing, z_loss, softcap, 0, dims["N"]
