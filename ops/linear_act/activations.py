"""Activations and their gradients as kernel helpers, by the names that ``linear_act`` and ``gated_act`` take.

They are those of Transformers' table (``ACT2FN``) under its names, but for ``prelu`` and ``xielu``, which have parameters, and
``sqrtsoftplus``, whose slope never comes to rest (``FLAT``).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import kpt_dsl as kd

T = TypeVar("T")

SQRT_HALF = 0.7071067811865476
TANH_LINEAR = -2.302208198144325
"""-2 * sqrt(2 / pi) * log2(e)"""
TANH_CUBIC = 0.044715 * TANH_LINEAR
TANH_SLOPE = 1.5957691216057308
"""2 * sqrt(2 / pi)"""
TANH_SLOPE_SQUARE = 3 * 0.044715 * TANH_SLOPE
DENSITY = 0.3989422804014327
"""1 / sqrt(2 pi), the normal density at zero"""
HALF_LOG2E = 0.7213475204444817
"""log2(e) / 2"""
FLAT = 32768.0
"""Beyond it, on both sides, the slope of every activation is constant in float32 (but of relu2, whose output float16 does not
hold from 256 on): a pre-activation that is saved for the backward stops here, which float16 holds. Larger ones would be saved
as infinities there, whose gradients are NaN."""
QUICK = 1.702
LEAK = 0.01
HIGHEST = 10.0
"""Where gelu_10 stops."""
LAPLACE_MEAN, LAPLACE_STEEP = 0.707107, 1 / 0.282095
"""A normal distribution's, and one over its deviation"""
LAPLACE_RATE = SQRT_HALF * LAPLACE_STEEP
LAPLACE_DENSITY = 0.5641895835477563 * LAPLACE_RATE
"""The rate over sqrt(pi), laplace's slope at its mean"""
LOG2E = 1.4426950408889634


@kd.function
def relu(x: kd.Value) -> kd.Value:
    """max(x, 0); NaN stays NaN."""
    return kd.where(x < 0.0, 0.0, x)


@kd.function
def gelu(x: kd.Value) -> kd.Value:
    """x times the normal distribution function Phi (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return x * kd.ndtr(x)


@kd.function
def gelu_tanh(x: kd.Value) -> kd.Value:
    """The tanh approximation of gelu, from the same paper: (1 + tanh u) / 2 is 1 / (1 + exp -2u), which takes fewer
    instructions and stays exact far below zero."""
    return x / (1.0 + kd.exp2(x * (TANH_LINEAR + TANH_CUBIC * (x * x))))


@kd.function
def silu(x: kd.Value) -> kd.Value:
    """x * sigmoid(x)."""
    return x * kd.sigmoid(x)


@kd.function
def relu_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy, but 0 where x <= 0 (PyTorch's choice at zero). relu(x) tells as much as x."""
    return kd.where(x <= 0.0, 0.0, dy)


@kd.function
def gelu_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy times the derivative of x Phi(x): Phi(x) + x phi(x), phi = Phi' the normal density (the product rule)."""
    return dy * (kd.ndtr(x) + x * (DENSITY * kd.exp2(x * x * -HALF_LOG2E)))


@kd.function
def gelu_tanh_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy times the derivative of x s, s = 1 / (1 + exp -2u) as in ``gelu_tanh``: s + x s (1 - s) 2u', as s' = s (1 - s) 2u'."""
    square = x * x
    s = 1.0 / (1.0 + kd.exp2(x * (TANH_LINEAR + TANH_CUBIC * square)))
    return dy * (s + x * (s * (1.0 - s)) * (TANH_SLOPE + TANH_SLOPE_SQUARE * square))


@kd.function
def silu_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy times the derivative of x s(x): s (1 + x (1 - s)) (Elfwing et al. 2018, arXiv:1702.03118)."""
    s = kd.sigmoid(x)
    return dy * (s * (1.0 + x * (1.0 - s)))


@kd.function
def quick_gelu(x: kd.Value) -> kd.Value:
    """x * sigmoid(1.702 x), from gelu's paper."""
    return x * kd.sigmoid(QUICK * x)


@kd.function
def quick_gelu_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """As silu's, with 1.702 x."""
    s = kd.sigmoid(QUICK * x)
    return dy * (s * (1.0 + QUICK * x * (1.0 - s)))


@kd.function
def gelu_10(x: kd.Value) -> kd.Value:
    """gelu, but 10 at most; it is never below -10."""
    return kd.minimum(gelu(x), HIGHEST)


@kd.function
def gelu_10_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """gelu's, but 0 beyond 10."""
    return kd.where(gelu(x) > HIGHEST, 0.0, gelu_backward(dy, x))


@kd.function
def sigmoid(x: kd.Value) -> kd.Value:
    """1 / (1 + exp -x)."""
    return kd.sigmoid(x)


@kd.function
def sigmoid_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy s (1 - s)."""
    s = kd.sigmoid(x)
    return dy * (s * (1.0 - s))


@kd.function
def tanh(x: kd.Value) -> kd.Value:
    """The hyperbolic tangent."""
    return kd.tanh(x)


@kd.function
def tanh_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy (1 - t t)."""
    t = kd.tanh(x)
    return dy * (1.0 - t * t)


@kd.function
def mish(x: kd.Value) -> kd.Value:
    """x * tanh(log(1 + exp x)) (Misra 2019, arXiv:1908.08681). With e = exp -|x| the tangent is (1 + 2e) / (1 + 2e + 2ee) above
    zero and (ee + 2e) / (ee + 2e + 2) below, where nothing cancels or overflows."""
    e = kd.exp2(kd.abs(x) * -LOG2E)
    square = e * e
    return x * kd.where(
        x < 0.0, (square + 2.0 * e) / (square + 2.0 * e + 2.0), (1.0 + 2.0 * e) / (1.0 + 2.0 * e + 2.0 * square)
    )


@kd.function
def mish_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy times the derivative of x t: t + x (1 - t t) sigmoid(x), of e as in ``mish`` again."""
    e = kd.exp2(kd.abs(x) * -LOG2E)
    square = e * e
    below = x < 0.0
    over = kd.where(below, square + 2.0 * e + 2.0, 1.0 + 2.0 * e + 2.0 * square)
    t = kd.where(below, square + 2.0 * e, 1.0 + 2.0 * e) / over
    return dy * (t + x * (4.0 * kd.where(below, e, square) * (1.0 + e) / (over * over)))


@kd.function
def hardswish(x: kd.Value) -> kd.Value:
    """x times x / 6 + 1/2, which stays within 0 and 1 (Howard et al. 2019, arXiv:1905.02244)."""
    return x * (kd.minimum(kd.maximum(x + 3.0, 0.0), 6.0) / 6.0)


@kd.function
def hardswish_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy (x / 3 + 1/2) between -3 and 3; below 0, above dy."""
    return kd.where(x <= -3.0, 0.0, kd.where(x < 3.0, dy * (x / 3.0 + 0.5), dy))


@kd.function
def relu2(x: kd.Value) -> kd.Value:
    """max(x, 0) squared (So et al. 2021, arXiv:2109.08668)."""
    positive = kd.maximum(x, 0.0)
    return positive * positive


@kd.function
def relu2_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy 2 max(x, 0)."""
    return dy * (2.0 * kd.maximum(x, 0.0))


@kd.function
def relu6(x: kd.Value) -> kd.Value:
    """x, but 0 at least and 6 at most; NaN stays NaN."""
    return kd.minimum(kd.maximum(x, 0.0), 6.0)


@kd.function
def relu6_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy, but 0 where x <= 0 or x >= 6."""
    return kd.where((x <= 0.0) | (x >= 6.0), 0.0, dy)


@kd.function
def leaky_relu(x: kd.Value) -> kd.Value:
    """x, but x / 100 below zero."""
    return kd.where(x > 0.0, x, LEAK * x)


@kd.function
def leaky_relu_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy, but dy / 100 where x <= 0."""
    return kd.where(x > 0.0, dy, LEAK * dy)


@kd.function
def laplace(x: kd.Value) -> kd.Value:
    """A normal distribution function that is close to relu2 (Ma et al. 2022, arXiv:2209.10655)."""
    return kd.ndtr((x - LAPLACE_MEAN) * LAPLACE_STEEP)


@kd.function
def laplace_backward(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy times its density."""
    from_mean = (x - LAPLACE_MEAN) * LAPLACE_RATE
    return dy * (LAPLACE_DENSITY * kd.exp2(from_mean * from_mean * -LOG2E))


@kd.function
def identity(x: kd.Value) -> kd.Value:
    """x itself."""
    return x


@kd.function
def passed_on(dy: kd.Value, x: kd.Value) -> kd.Value:
    """dy itself, the gradient of ``identity``."""
    return dy


ALIASES: Mapping[str, str] = MappingProxyType(
    {"swish": "silu", "gelu_python": "gelu"}
    | dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh")
)
"""Other names that Transformers has for one activation."""


def with_aliases(table: Mapping[str, T]) -> Mapping[str, T]:
    """A table of activations that knows their other names as well."""
    return MappingProxyType({**table, **{alias: table[name] for alias, name in ALIASES.items()}})


ACTIVATIONS: Mapping[str, object] = with_aliases(
    {
        "none": identity,
        "relu": relu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "silu": silu,
        "quick_gelu": quick_gelu,
        "gelu_10": gelu_10,
        "sigmoid": sigmoid,
        "tanh": tanh,
        "mish": mish,
        "hardswish": hardswish,
        "relu2": relu2,
        "relu6": relu6,
        "leaky_relu": leaky_relu,
        "laplace": laplace,
    }
)

BACKWARD: Mapping[str, object] = with_aliases(
    {
        "relu": relu_backward,
        "gelu": gelu_backward,
        "gelu_tanh": gelu_tanh_backward,
        "silu": silu_backward,
        "quick_gelu": quick_gelu_backward,
        "gelu_10": gelu_10_backward,
        "sigmoid": sigmoid_backward,
        "tanh": tanh_backward,
        "mish": mish_backward,
        "hardswish": hardswish_backward,
        "relu2": relu2_backward,
        "relu6": relu6_backward,
        "leaky_relu": leaky_relu_backward,
        "laplace": laplace_backward,
    }
)
"""Gradients of the activations: of dy and the pre-activation. "none" has none: dy goes on as it is."""
