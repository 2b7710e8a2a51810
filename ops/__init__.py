"""kpt.ops: the ops, drop-in for PyTorch's own, and what tells or steers who serves them.

    y = kpt.ops.layer_norm(x, (4096,), weight, bias)
    print(kpt.ops.explain("layer_norm", x, (4096,), weight, bias))

Knows nothing of the command line and of tuning; imports neither Triton nor JAX before a kernel runs.
"""

from kpt.ops.add_layer_norm.op import add_layer_norm
from kpt.ops.add_rms_norm.op import add_rms_norm
from kpt.ops.calls import Call, Calls, recording
from kpt.ops.choice import prefer
from kpt.ops.compiling import while_compiling
from kpt.ops.cross_entropy.op import cross_entropy
from kpt.ops.dispatch import counters
from kpt.ops.explain import Explanation, explain
from kpt.ops.flash_attention.op import flash_attention
from kpt.ops.flash_attention.sdpa import scaled_dot_product_attention
from kpt.ops.fp8_matmul.op import fp8_matmul
from kpt.ops.gated_act.op import gated_act
from kpt.ops.layer_norm.op import layer_norm
from kpt.ops.linear_act.op import linear_act
from kpt.ops.linear_cross_entropy.op import linear_cross_entropy
from kpt.ops.quantize_fp8.op import quantize_fp8
from kpt.ops.rms_norm.op import rms_norm
from kpt.ops.rotary.op import rotary
from kpt.ops.warm_up import Warmed, warm_up

__all__ = [
    "Call",
    "Calls",
    "Explanation",
    "Warmed",
    "add_layer_norm",
    "add_rms_norm",
    "counters",
    "cross_entropy",
    "explain",
    "flash_attention",
    "fp8_matmul",
    "gated_act",
    "layer_norm",
    "linear_act",
    "linear_cross_entropy",
    "prefer",
    "quantize_fp8",
    "recording",
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
    "warm_up",
    "while_compiling",
]
