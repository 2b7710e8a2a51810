"""Shapes of linear layers with an activation that models have, and inputs of a given shape."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from kpt.ops.dtypes import torch_dtype
from kpt.ops.shapes import Shape

DIMS = ("M", "N", "K")
"""M rows of K features in, N features out."""

SHAPES = (
    Shape("minilm", {"M": 32 * 128, "N": 1536, "K": 384}, "f32", {"activation": "gelu"}),
    Shape("bert-base", {"M": 32 * 512, "N": 3072, "K": 768}, flags={"activation": "gelu"}),
    Shape("gpt2", {"M": 8 * 1024, "N": 3072, "K": 768}, flags={"activation": "gelu_tanh"}),
    Shape("gpt2", {"M": 8 * 1024, "N": 3072, "K": 768}, flags={"activation": "gelu_tanh", "transposed": True}),
    Shape("llama-8b", {"M": 8192, "N": 14336, "K": 4096}, flags={"activation": "silu", "bias": False}),
    Shape("llama-8b", {"M": 16, "N": 14336, "K": 4096}, flags={"activation": "silu", "bias": False}),
    Shape("matmul", {"M": 8192, "N": 14336, "K": 4096}, flags={"activation": "gelu_tanh"}),
    Shape("matmul", {"M": 4096, "N": 4096, "K": 4096}, flags={"activation": "gelu_tanh"}),
)

TRAINED = tuple(shape for shape in SHAPES if shape.dims["M"] >= 1024)
"""Those that training has; fewer rows are decoding."""


def arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    activation: str = "gelu",
    bias: bool = True,
    transposed: bool = False,
    recompute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, str, bool]:
    """Random arguments of the op, those of ``saving_arguments`` and whether to recompute."""
    made = saving_arguments(dims, dtype, device, activation=activation, bias=bias, transposed=transposed)
    return *made, recompute


def saving_arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    activation: str = "gelu",
    bias: bool = True,
    transposed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, str]:
    """Random arguments of ``linear_act_saving``: weights of standard deviation 1 / sqrt(K), so that outputs are of size one;
    ``transposed``, in the order of GPT-2's ``Conv1D``."""
    randn = partial(torch.randn, dtype=torch_dtype(dtype), device=device)
    m, n, k = dims["M"], dims["N"], dims["K"]
    weight = randn(k, n).mT if transposed else randn(n, k)
    return randn(m, k), weight * k**-0.5, randn(n) if bias else None, activation


def backward_arguments(
    dims: Mapping[str, int],
    dtype: str,
    device: str,
    *,
    activation: str = "gelu",
    bias: bool = True,
    transposed: bool = False,
    recompute: bool = False,
) -> tuple[Any, ...]:
    """Random arguments of ``linear_act_backward``, with all gradients wanted; the pre-activation is given unless recomputed."""
    x, weight, b, _ = saving_arguments(dims, dtype, device, activation=activation, bias=bias, transposed=transposed)
    dy, z = (torch.randn(dims["M"], dims["N"], dtype=x.dtype, device=device) for _ in range(2))
    return dy, x, weight, b, None if recompute or activation == "none" else z, activation, (True, True, bias)
