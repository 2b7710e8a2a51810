"""The ops as functions of JAX arrays."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from kpt import ops
from kpt.jax.interpreter import Interpreter
from kpt.jax.serve import serve

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "cross_entropy",
    "flash_attention",
    "fp8_matmul",
    "gated_act",
    "layer_norm",
    "linear_act",
    "linear_cross_entropy",
    "quantize_fp8",
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
]

Function = Callable[..., Any]


def on_arrays(public: Function) -> Function:
    """The function with arrays for tensors."""

    @wraps(public)
    def function(*args: Any, **kwargs: Any) -> Any:
        return Interpreter(serve).call(public, *args, **kwargs)

    return function


add_layer_norm = on_arrays(ops.add_layer_norm)
add_rms_norm = on_arrays(ops.add_rms_norm)
cross_entropy = on_arrays(ops.cross_entropy)
flash_attention = on_arrays(ops.flash_attention)
fp8_matmul = on_arrays(ops.fp8_matmul)
gated_act = on_arrays(ops.gated_act)
layer_norm = on_arrays(ops.layer_norm)
linear_act = on_arrays(ops.linear_act)
linear_cross_entropy = on_arrays(ops.linear_cross_entropy)
quantize_fp8 = on_arrays(ops.quantize_fp8)
rms_norm = on_arrays(ops.rms_norm)
rotary = on_arrays(ops.rotary)
scaled_dot_product_attention = on_arrays(ops.scaled_dot_product_attention)
