"""Layer norm and RMS norm backward alone in bf16, by autograd on every side, against PyTorch, Inductor and Liger.

The graph of the forward is made once and kept: what is timed is ``torch.autograd.grad`` of input and parameters, sums over rows
included, on the statistics or without them as each peer likes.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional

from benchmarks import peers
from benchmarks.case import OpCase, Run
from benchmarks.norms import SHAPES
from kpt import ops
from kpt.ops import registry

TITLE = "Norms backward, bf16 (3 * M * N * 2 bytes)"

EPS = 1e-5


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for op in ("layer_norm", "rms_norm"):
        for m, n in SHAPES:
            yield f"{op} {m}x{n}", partial(case, op, m, n)


def case(op: str, m: int, n: int, device: str = "cuda") -> OpCase:
    x, dy = (torch.randn(m, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    count = 2 if op == "layer_norm" else 1
    parameters = [torch.randn(n, device=device, dtype=torch.bfloat16) for _ in range(count)]

    def native(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return getattr(functional, op)(x, (n,), *parameters, eps=EPS)

    def kpt(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return getattr(ops, op)(x, (n,), *parameters, eps=EPS)

    def measured(function: Callable[..., torch.Tensor]) -> Run:
        return peers.backward(function, dy, x, *parameters)

    found, missing = peers.available(
        {
            "torch": lambda: measured(native),
            "Inductor": lambda: peers.compiled(native, measured),
            "Liger": lambda: measured(liger(op)),
        }
    )
    problems = registry.get(f"{op}_backward").instances({"M": m, "N": n}, "bf16")
    work = 3 * x.numel() * x.element_size()
    return OpCase(f"{op} {m}x{n}", tuple(problems), {"kpt": measured(kpt)}, work, "GB/s", found, missing=missing)


def liger(op: str) -> Callable[..., torch.Tensor]:
    """Liger's autograd functions. Raises ImportError where it is not installed."""
    if op == "layer_norm":
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, EPS)
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Not in place: dx would be written over dy, which the next run reads again.
    return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)
