"""Shapes of heads that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from kpt.ops.cross_entropy.reference import capped
from kpt.ops.cross_entropy.shapes import IGNORED
from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N", "K")
"""M rows of K features in, N classes."""

SHAPES = (
    Shape("llama-1b", {"M": 8192, "N": 128256, "K": 2048}),
    Shape("llama-8b", {"M": 8192, "N": 128256, "K": 4096}),
    Shape("qwen3-8b", {"M": 8192, "N": 151936, "K": 4096}),
    Shape("gpt2", {"M": 8192, "N": 50257, "K": 768}),
)


def arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    bias: bool = False,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Any, ...]:
    """Random arguments of the op: weights of standard deviation 1 / sqrt(K), so that logits are of size one."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    m, n, k = dims["M"], dims["N"], dims["K"]
    target = torch.randint(n, (m,), device=device)
    options = (IGNORED, reduction, label_smoothing, z_loss, softcap)
    return randn(m, k), randn(n, k) * k**-0.5, target, randn(n) if bias else None, *options, None


def backward_arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, bias: bool = False, **options: Any
) -> tuple[Any, ...]:
    """Random arguments of ``linear_cross_entropy_backward``, of a mean, with all gradients wanted."""
    x, weight, target, b, ignored, _, *others, _ = arguments(dims, dtype, device, bias=bias, **options)
    rows = dims["M"]
    logits = x.new_empty(rows, 1) if device == "meta" else torch.nn.functional.linear(x, weight, b)
    lse = capped(logits.float(), others[-1]).logsumexp(1)
    count = torch.full((), float(rows), device=device)
    dloss = torch.ones((), device=device).expand(rows)
    return dloss, x, weight, target, b, lse, count, ignored, *others, (True, True, bias)
