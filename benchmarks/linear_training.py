"""Linear + gelu, forward and backward, by autograd on every side, against eager PyTorch and torch.compile of it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional

from benchmarks import peers
from benchmarks.case import OpCase, Run
from benchmarks.linear import APPROXIMATE, SIZES
from kpt import ops
from kpt.ops import registry
from kpt_dsl.instance import Instance

TITLE = "Linear + gelu, forward and backward, bf16 (three products)"


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for name, size in SIZES.items():
        yield name, partial(case, name, *size)


def case(name: str, m: int, n: int, k: int, activation: str, device: str = "cuda") -> OpCase:
    x, weight, bias, dy = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in ((m, k), (n, k), (n,), (m, n)))
    weight *= k**-0.5

    def eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.gelu(functional.linear(x, weight, bias), approximate=APPROXIMATE[activation])

    def trained(function: Callable[..., torch.Tensor]) -> Run:
        return peers.forward_backward(function, dy, x, weight, bias)

    found, missing = peers.available(
        {
            "eager": lambda: trained(eager),
            "Inductor": lambda: peers.compiled(eager, trained),
            "F.linear alone": lambda: trained(functional.linear),
        }
    )
    return OpCase(
        name,
        _problems({"M": m, "N": n, "K": k}, activation),
        {
            "kpt": trained(partial(ops.linear_act, activation=activation)),
            "kpt recomputing": trained(partial(ops.linear_act, activation=activation, recompute=True)),
        },
        6 * m * n * k,
        "TFLOP/s",
        found,
        frozenset({"F.linear alone"}),
        missing,
    )


def _problems(dims: dict[str, int], activation: str) -> tuple[Instance, ...]:
    """Every kernel that either way runs, once."""
    saving = registry.get("linear_act_saving").instances(dims, "bf16", activation=activation)
    plain = registry.get("linear_act").instances(dims, "bf16", activation=activation)
    backward = registry.get("linear_act_backward")
    both = (
        p for again in (False, True) for p in backward.instances(dims, "bf16", activation=activation, recompute=again)
    )
    return tuple(dict.fromkeys((*saving, *plain, *both)))
