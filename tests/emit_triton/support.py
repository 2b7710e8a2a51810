"""Instances, sources and runs in few words."""

import math
from typing import Any

import torch

from kpt.ops.flash_attention.backward_kernels import flash_attention_dkdv
from kpt_dsl import targets
from kpt_dsl.emit import Source, emit
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config
from tests.emit_triton.kernels import attention, linear

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
         "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}  # fmt: skip


def linear_instance(M: int, N: int, K: int, dtype: str = "bf16", **statics: Any) -> Instance:
    dtypes = {"x": dtype, "weight": dtype, "bias": dtype if statics.pop("bias", True) else None, "y": dtype}
    return Instance.of_shapes(linear, dict(M=M, N=N, K=K), dtypes, {"activation": None} | statics)


def attention_instance(M: int, N: int, D: int, dtype: str = "bf16", lengths: bool = False, **statics: Any) -> Instance:
    dtypes = {"q": dtype, "k": dtype, "v": dtype, "lengths": "i32" if lengths else None, "o": dtype}
    dims = dict(B=2, H=4, G=2, M=M, N=N, D=D)
    return Instance.of_shapes(attention, dims, dtypes, {"causal": False, "window": None} | statics)


def key_gradients_instance(M: int, N: int, D: int, dtype: str = "bf16", causal: bool = False) -> Instance:
    wide = dict.fromkeys(("delta", "shift"), "f32")
    given = flash_attention_dkdv.tensors.keys() - flash_attention_dkdv.defaults
    dtypes = dict.fromkeys(given, dtype) | wide | dict.fromkeys(("key_lengths", "dq_sum"))
    dims = dict(B=2, H=4, G=4, M=M, N=N, D=D, E=D)
    return Instance.of_shapes(flash_attention_dkdv, dims, dtypes, {"causal": causal, "window": None})


def source(instance: Instance, target: str = "nvidia-h200", **knobs: Any) -> Source:
    return emit(instance, targets.get(target), Config(**knobs))


def run(kernel: Kernel, target: str = "nvidia-h200", /, *, knobs: dict[str, Any], **arguments: Any) -> None:
    """Under Triton's interpreter."""
    interpret_for(targets.get(target), Instance.bind(kernel, arguments), arguments, Config(**knobs))


def unset(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """An output in which whatever is not written shows."""
    return torch.full(shape, math.nan).to(TORCH[dtype])


def normal(*shape: int, dtype: str = "f32", scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(TORCH[dtype])
