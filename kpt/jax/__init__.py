"""kpt.jax: the ops of kpt.ops for JAX arrays, under the same names, with the same arguments.

    y = kpt.jax.rms_norm(x, (4096,), weight)

They are functions of JAX: in jit, grad, vmap and shard_map. On TPUs the generated Pallas kernels run, elsewhere XLA's own
operations, unless ``prefer("pallas")`` asks for the kernels, interpreted. Imports JAX and PyTorch, whose arrays it never makes.
"""

from kpt_dsl.extensions import check_release

OLDEST = (0, 10)
"""The first release whose types say over which axes of a mesh an array varies (``jax.sharding.ManualAxisType``)."""
check_release("jax", OLDEST, f"kpt.jax needs JAX {OLDEST[0]}.{OLDEST[1]} or newer: pip install 'kpt-dsl[tpu]'")

from kpt.jax.explain import explain  # noqa: E402
from kpt.jax.ops import (  # noqa: E402 (JAX is there)
    add_layer_norm,
    add_rms_norm,
    cross_entropy,
    flash_attention,
    fp8_matmul,
    gated_act,
    layer_norm,
    linear_act,
    linear_cross_entropy,
    quantize_fp8,
    rms_norm,
    rotary,
    scaled_dot_product_attention,
)
from kpt.jax.torchax import serve_torchax  # noqa: E402
from kpt.ops.choice import prefer  # noqa: E402

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
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
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
    "serve_torchax",
]
