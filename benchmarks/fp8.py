"""FP8 (e4m3) matrix product to bf16 against cuBLASLt tensor-wise and CUTLASS row-wise, through torch._scaled_mm."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.case import Case
from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt_dsl.instance import Instance

TITLE = "FP8 e4m3 matrix product to bf16"


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for m, n, k in ((8192, 8192, 8192), (8192, 14336, 4096)):
        for row_wise in (False, True):
            name = f"{m}x{n}x{k} {'row' if row_wise else 'tensor'}-wise"
            yield name, partial(case, name, m, n, k, row_wise)


def case(name: str, m: int, n: int, k: int, row_wise: bool) -> Case:
    a = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    scale_a = torch.rand(m if row_wise else 1, 1, device="cuda")
    scale_b = torch.rand(1, n if row_wise else 1, device="cuda")
    arrays = dict(
        a=a, b=b, scale_a=scale_a.reshape(-1).expand(m), scale_b=scale_b.reshape(-1).expand(n), bias=None,
        y=torch.empty(m, n, device="cuda", dtype=torch.bfloat16),
    )  # fmt: skip
    one_a, one_b = (scale_a, scale_b) if row_wise else (scale_a.reshape(()), scale_b.reshape(()))
    peers = {
        "torch._scaled_mm": lambda: torch._scaled_mm(
            a, b.t(), scale_a=one_a, scale_b=one_b, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    }
    return Case(name, Instance.bind(fp8_matmul_fwd, arrays), arrays, 2 * m * n * k, "TFLOP/s", peers)
