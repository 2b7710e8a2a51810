"""Heads of language models with odd numbers of classes, in bf16: replaced as kpt.optimize does it, and joined with the
cross-entropy, against eager PyTorch, torch.compile of it, and Liger's loss where it is installed. Inductor pads such heads.

The bound is eager PyTorch's product with the next multiple of 64 classes.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks import peers
from benchmarks.case import OpCase, Run
from kpt import ops, replace_modules
from kpt.ops import registry
from kpt_dsl.instance import Instance

TITLE = "Heads with odd numbers of classes, bf16"

SIZES = {"GPT-2": (16384, 50257, 768), "BERT": (8192, 30522, 768), "RoBERTa": (8192, 50265, 1024)}
"""Rows, classes and features."""

EVEN = "eager, level"


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for name, size in SIZES.items():
        named = f"{name} {'x'.join(map(str, size))}"
        yield f"{named}, forward", partial(product, f"{named}, forward", *size, False)
        yield f"{named}, forward and backward", partial(product, f"{named}, forward and backward", *size, True)
        yield f"{named}, with the loss", partial(loss, f"{named}, with the loss", *size)


def product(name: str, m: int, n: int, k: int, trained: bool, device: str = "cuda") -> OpCase:
    """The head alone, without gradients, or with those of the input and the weight."""
    layer = nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16)
    replace_modules(layer, only=["unaligned_linear"])
    x, weight = torch.randn(m, k, device=device, dtype=torch.bfloat16), layer.weight.detach()
    level = functional.pad(weight, (0, 0, 0, -n % 64))

    def run(function: Callable[..., torch.Tensor], *given: torch.Tensor) -> Run:
        if not trained:
            return peers.forward(function, *given)
        return peers.forward_backward(function, torch.ones(m, given[1].shape[0], device=device, dtype=x.dtype), *given)

    def replaced(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(layer, {"weight": weight}, x)
        return found

    found, missing = peers.available(
        {
            "eager": lambda: run(functional.linear, x, weight),
            "Inductor": lambda: peers.compiled(functional.linear, lambda fast: run(fast, x, weight)),
            EVEN: lambda: run(functional.linear, x, level),
        }
    )
    names = ("linear_act", *(["linear_act_backward"] if trained else []))
    problems = _problems(names, {"M": m, "N": n, "K": k}, activation="none", bias=False)
    return OpCase(
        name, problems, {"kpt": run(replaced, x, weight)}, (6 if trained else 2) * m * n * k, "TFLOP/s", found,
        frozenset({EVEN}), missing,
    )  # fmt: skip


def loss(name: str, m: int, n: int, k: int, device: str = "cuda") -> OpCase:
    """The head and the mean of cross-entropies, with the gradients of input and weight."""
    x, weight = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in ((m, k), (n, k)))
    weight *= k**-0.5
    target = torch.randint(n, (m,), device=device)
    slope = torch.ones((), device=device)

    def eager(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(x, weight).float(), target)

    def trained(function: Callable[..., torch.Tensor]) -> Run:
        return peers.forward_backward(function, slope, x, weight)

    def liger() -> Run:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused

        return trained(lambda x, weight: fused(x, weight, target))

    found, missing = peers.available(
        {
            "eager": lambda: trained(eager),
            "Inductor": lambda: peers.compiled(eager, trained),
            "Liger": liger,
            EVEN: lambda: peers.forward_backward(eager, slope, x, functional.pad(weight, (0, 0, 0, -n % 64))),
        }
    )
    problems = _problems(("linear_cross_entropy", "linear_cross_entropy_backward"), {"M": m, "N": n, "K": k})
    return OpCase(
        name, problems, {"kpt": trained(lambda x, weight: ops.linear_cross_entropy(x, weight, target))}, 6 * m * n * k,
        "TFLOP/s", found, frozenset({EVEN}), missing,
    )  # fmt: skip


def _problems(names: tuple[str, ...], dims: dict[str, int], **flags: object) -> tuple[Instance, ...]:
    """The kernels behind calls of these ops."""
    found = [p for name in names for p in registry.get(name).instances(dims, "bf16", **flags)]
    return tuple(dict.fromkeys(found))
