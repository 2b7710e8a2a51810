"""PyTorch's operations as JAX's: the vocabulary of the ops' references, and of what stands around their kernels.

Each takes arrays where PyTorch's takes tensors, and is rounded to PyTorch's dtype of the result by who calls it. Names are
those of ``torch.ops.aten``; what is missing here is made of others by PyTorch's own decompositions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kpt.jax.memory import jax_dtype

Operation = Callable[..., Any]


def _axes(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, list | tuple) and dim else None if dim in (None, [], ()) else dim


def _scaled(function: Operation) -> Operation:
    """An addition or subtraction of ``alpha`` times the second."""
    return lambda a, b, alpha=1: function(a, b if alpha == 1 else b * alpha)


def _reduced(function: Operation) -> Operation:
    def reduced(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return function(x if dtype is None else x.astype(jax_dtype(dtype)), axis=_axes(dim), keepdims=keepdim)

    return reduced


def _safe_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    """Zeros where there is nothing but -inf."""
    return jnp.where(jnp.all(x == -jnp.inf, dim, keepdims=True), 0, jax.nn.softmax(x, dim))


def _gelu(x: Any, approximate: str = "none") -> Any:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _of(activation: Operation) -> Operation:
    """The gradient of an activation, by JAX: of dy and where it was."""
    return lambda dy, x, *_, **options: jax.vjp(lambda at: activation(at, **options), x)[1](dy)[0]


def _product(a: Any, b: Any, out: Any = None) -> Any:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


def _nll(x: Any, target: Any, weight: Any, reduction: int, ignored: int) -> tuple[Any, Any]:
    """Less what ``target`` picks of (rows, classes): its sum or mean; and the weight of the rows that count."""
    counts = target != ignored
    picked = jnp.where(counts, target, 0)
    weights = jnp.where(counts, jnp.ones((), x.dtype) if weight is None else weight[picked], 0)
    losses = -jnp.take_along_axis(x, picked[..., None], -1)[..., 0] * weights
    losses = jnp.where(counts, losses, 0)
    total = weights.sum()
    return {0: losses, 1: losses.sum() / total, 2: losses.sum()}[reduction], total


def _layer_norm(x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    axes, wide = tuple(range(x.ndim - len(shape), x.ndim)), x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    rstd = lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + eps)
    y = centred * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


def _scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    where = list(jnp.indices(index.shape))
    where[dim] = index
    return x.at[tuple(where)].add(jnp.broadcast_to(source, index.shape))


def _filled(x: Any, value: Any, **_: Any) -> Any:
    return jnp.broadcast_to(value, x.shape)


def _arange(*bounds: Any, **_: Any) -> Any:
    return jnp.arange(*bounds)


OPERATIONS: Mapping[str, Operation] = {
    # elementwise, of one
    "abs": jnp.abs, "bitwise_not": jnp.bitwise_not, "erf": lax.erf, "exp": jnp.exp, "neg": jnp.negative,
    "reciprocal": jnp.reciprocal, "rsqrt": lax.rsqrt, "sqrt": jnp.sqrt, "tanh": jnp.tanh, "log": jnp.log,
    "clone": lambda x, **_: x, "_to_copy": lambda x, **_: x, "copy": lambda _, x, *__: x,
    "_unsafe_view": lambda x, shape: x.reshape(shape),
    # elementwise, of two and three
    "add": _scaled(jnp.add), "sub": _scaled(jnp.subtract), "rsub": lambda a, b, alpha=1: b - a * alpha, "mul": jnp.multiply,
    "div": jnp.divide, "pow": jnp.power, "logaddexp": jnp.logaddexp, "maximum": jnp.maximum, "minimum": jnp.minimum,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "eq": jnp.equal, "ne": jnp.not_equal, "ge": jnp.greater_equal,
    "gt": jnp.greater, "le": jnp.less_equal, "lt": jnp.less, "where": jnp.where, "clamp": _clamp, "clamp_min": _clamp,
    "masked_fill": lambda x, mask, value: jnp.where(mask, value, x),
    # activations and their gradients
    "gelu": _gelu, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu, "mish": jax.nn.mish,
    "softplus": lambda x, *_: jax.nn.softplus(x),
    "hardswish": jax.nn.hard_swish, "hardtanh": _clamp,
    "leaky_relu": lambda x, slope=0.01: jnp.where(x > 0, x, x * slope),
    "gelu_backward": _of(_gelu), "silu_backward": _of(jax.nn.silu), "mish_backward": _of(jax.nn.mish),
    "hardswish_backward": _of(jax.nn.hard_swish),
    "hardtanh_backward": lambda dy, x, low, high: jnp.where((x > low) & (x < high), dy, 0),
    "leaky_relu_backward": lambda dy, x, slope, _: jnp.where(x > 0, dy, dy * slope),
    "threshold_backward": lambda dy, x, threshold: jnp.where(x > threshold, dy, 0),
    "sigmoid_backward": lambda dy, y: dy * y * (1 - y), "tanh_backward": lambda dy, y: dy * (1 - y * y),
    # reductions
    "amax": _reduced(jnp.max), "any": _reduced(jnp.any), "mean": _reduced(jnp.mean), "sum": _reduced(jnp.sum),
    "logsumexp": _reduced(jax.nn.logsumexp), "_safe_softmax": _safe_softmax,
    "_softmax": lambda x, dim, _: jax.nn.softmax(x, dim), "_log_softmax": lambda x, dim, _: jax.nn.log_softmax(x, dim),
    "nll_loss_forward": _nll, "native_layer_norm": _layer_norm,
    # products
    "mm": _product, "bmm": _product, "addmm": lambda c, a, b: c + _product(a, b),
    # made, and put together
    "arange": _arange, "cat": lambda parts, dim=0: jnp.concatenate(parts, dim),
    "stack": lambda parts, dim=0: jnp.stack(parts, dim),
    "fill": _filled, "full": lambda shape, value, **_: jnp.full(shape, value), "full_like": _filled,
    "ones": lambda shape, **_: jnp.ones(shape), "ones_like": lambda x, **_: jnp.ones_like(x),
    "scalar_tensor": lambda value, **_: jnp.asarray(value), "scatter_add": _scatter_add,
    "tril": jnp.tril, "zero": jnp.zeros_like, "zeros": lambda shape, **_: jnp.zeros(shape),
    "zeros_like": lambda x, **_: jnp.zeros_like(x), "new_zeros": lambda x, shape, **_: jnp.zeros(shape),
    "index": lambda x, places: x[tuple(slice(None) if p is None else p for p in places)],
}  # fmt: skip
"""By name, without overloads; those that write into their first tensor have the name of the one that does not."""

OF_A_SHAPE = frozenset({"copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros"})
"""Those that ask their first tensor for no more than its shape; nothing need have been written to it."""
