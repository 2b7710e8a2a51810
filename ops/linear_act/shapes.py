"""Shapes of linear layers with an activation that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N", "K")
"""M rows of K features in, N features out."""

SHAPES = (
    Shape("minilm", {"M": 32 * 128, "N": 1536, "K": 384}, "f32", {"activation": "gelu"}),
    Shape("bert-base", {"M": 32 * 512, "N": 3072, "K": 768}, flags={"activation": "gelu"}),
    Shape("gpt2", {"M": 8 * 1024, "N": 3072, "K": 768}, flags={"activation": "gelu_tanh"}),
    Shape("llama-8b", {"M": 8192, "N": 14336, "K": 4096}, flags={"activation": "silu", "bias": False}),
    Shape("llama-8b", {"M": 16, "N": 14336, "K": 4096}, flags={"activation": "silu", "bias": False}),
    Shape("matmul", {"M": 8192, "N": 14336, "K": 4096}, flags={"activation": "gelu_tanh"}),
    Shape("matmul", {"M": 4096, "N": 4096, "K": 4096}, flags={"activation": "gelu_tanh"}),
)


def arguments(
    dims: Mapping[str, int], dtype: str, device: str, *, activation: str = "gelu", bias: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, str]:
    """Random arguments of the op: weights of standard deviation 1 / sqrt(K), so that outputs are of size one."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    m, n, k = dims["M"], dims["N"], dims["K"]
    return (
        randn(m, k),
        randn(n, k) * k**-0.5,
        randn(n) if bias else None,
        activation,
    )
