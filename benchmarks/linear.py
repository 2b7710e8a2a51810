"""Linear + gelu(tanh) in bf16 against eager PyTorch and cuBLASLt's gelu epilogue."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional

from benchmarks.case import Case
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt_dsl.instance import Instance

TITLE = "Linear + gelu(tanh), bf16"


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for m, n, k in ((8192, 14336, 4096), (4096, 4096, 4096)):
        yield f"{m}x{n}x{k}", partial(case, m, n, k)


def case(m: int, n: int, k: int, device: str = "cuda") -> Case:
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    weight = torch.randn(n, k, device=device, dtype=torch.bfloat16) * k**-0.5
    bias = torch.randn(n, device=device, dtype=torch.bfloat16)
    y = torch.empty(m, n, device=device, dtype=torch.bfloat16)
    arrays = dict(x=x, weight=weight, bias=bias, y=y, activation=ACTIVATIONS["gelu_tanh"])
    peers = {
        "F.linear alone": lambda: functional.linear(x, weight, bias),
        "eager": lambda: functional.gelu(functional.linear(x, weight, bias), approximate="tanh"),
        "cuBLASLt epilogue": lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True),
    }
    problem = Instance.bind(linear_act_fwd, arrays)
    return Case(f"{m}x{n}x{k}", problem, arrays, 2 * m * n * k, "TFLOP/s", peers, frozenset({"F.linear alone"}))
