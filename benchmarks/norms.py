"""Layer norm and RMS norm forward in bf16 against PyTorch, Inductor and, where installed, Liger."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch.nn import functional

from benchmarks.case import Case, Run
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt_dsl.instance import Instance

TITLE = "Norms forward, bf16 (2 * M * N * 2 bytes)"

SHAPES = ((32768, 1024), (8192, 4096), (8192, 8192), (4096, 16384))


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for m, n in SHAPES:
        yield f"layer_norm {m}x{n}", partial(_layer_norm, m, n)
    for m, n in SHAPES:
        yield f"rms_norm {m}x{n}", partial(_rms_norm, m, n)


def _inputs(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)
    weight, bias = (torch.randn(n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return x, weight, bias, torch.empty_like(x)


def _inductor(fn: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    torch._dynamo.reset()
    compiled = torch.compile(fn, dynamic=False)
    compiled(*inputs)
    return lambda: compiled(*inputs)


def _layer_norm(m: int, n: int) -> Case:
    x, weight, bias, y = _inputs(m, n)

    def native(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (n,), weight, bias, 1e-5)

    peers: dict[str, Run] = {"torch": lambda: native(x, weight, bias), "Inductor": _inductor(native, x, weight, bias)}
    if find_spec("liger_kernel"):
        from liger_kernel.ops.layer_norm import layer_norm_forward

        peers["Liger"] = lambda: layer_norm_forward(x, weight, bias, 1e-5)
    arrays = dict(x=x, weight=weight, bias=bias, y=y, eps=1e-5)
    problem = Instance.bind(layer_norm_fwd, arrays)
    return Case(f"layer_norm {m}x{n}", problem, arrays, 4 * m * n, "GB/s", peers)


def _rms_norm(m: int, n: int) -> Case:
    x, weight, _, y = _inputs(m, n)

    def native(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (n,), weight, 1e-6)

    peers: dict[str, Run] = {"torch": lambda: native(x, weight), "Inductor": _inductor(native, x, weight)}
    if find_spec("liger_kernel"):
        from liger_kernel.ops.rms_norm import rms_norm_forward

        peers["Liger"] = lambda: rms_norm_forward(x, weight, 1e-6, 0.0, "llama", None)
    arrays = dict(x=x, weight=weight, y=y, eps=1e-6)
    return Case(f"rms_norm {m}x{n}", Instance.bind(rms_norm_fwd, arrays), arrays, 4 * m * n, "GB/s", peers)
