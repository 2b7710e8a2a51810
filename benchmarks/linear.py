"""Linear + gelu in bf16 against eager PyTorch and, where it is by tanh, cuBLASLt's gelu epilogue."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch.nn import functional

from benchmarks.case import Case
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt_dsl.instance import Instance

TITLE = "Linear + gelu, bf16"

SIZES: Mapping[str, tuple[int, int, int, str]] = {
    "8192x14336x4096": (8192, 14336, 4096, "gelu_tanh"),
    "4096x4096x4096": (4096, 4096, 4096, "gelu_tanh"),
    "GPT-2 8192x3072x768": (8192, 3072, 768, "gelu_tanh"),
    "BERT 16384x3072x768": (16384, 3072, 768, "gelu"),
    "ViT 12608x3072x768": (12608, 3072, 768, "gelu"),
}
"""Rows, features out and in, and the activation."""

APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
"""How PyTorch calls the activations."""


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for name, size in SIZES.items():
        yield name, partial(case, name, *size)


def case(name: str, m: int, n: int, k: int, activation: str, device: str = "cuda") -> Case:
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    weight = torch.randn(n, k, device=device, dtype=torch.bfloat16) * k**-0.5
    bias = torch.randn(n, device=device, dtype=torch.bfloat16)
    y = torch.empty(m, n, device=device, dtype=torch.bfloat16)
    arrays = dict(x=x, weight=weight, weight_t=None, bias=bias, y=y, activation=ACTIVATIONS[activation])
    peers = {
        "F.linear alone": lambda: functional.linear(x, weight, bias),
        "eager": lambda: functional.gelu(functional.linear(x, weight, bias), approximate=APPROXIMATE[activation]),
    }
    if activation == "gelu_tanh":
        peers["cuBLASLt epilogue"] = lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    problem = Instance.bind(linear_act_fwd, arrays)
    return Case(name, problem, arrays, 2 * m * n * k, "TFLOP/s", peers, frozenset({"F.linear alone"}))
