"""Activations and their gradients as kernel helpers, by the names that ``linear_act`` takes."""

from collections.abc import Mapping
from types import MappingProxyType

import kpt_dsl as kd

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
"""Beyond it, on both sides, the gradient of every activation is 0 or 1 in float32: a pre-activation that is saved for the
backward stops here, which float16 holds. Larger ones would be saved as infinities there, whose gradients are NaN."""


@kd.function
def relu(x: kd.Value) -> kd.Value:
    """max(x, 0); NaN stays NaN."""
    return kd.where(x < 0.0, 0.0, x)


@kd.function
def gelu(x: kd.Value) -> kd.Value:
    """x times the normal distribution function (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return 0.5 * x * (1.0 + kd.erf(x * SQRT_HALF))


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
    return dy * (0.5 * (1.0 + kd.erf(x * SQRT_HALF)) + x * (DENSITY * kd.exp2(x * x * -HALF_LOG2E)))


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
def identity(x: kd.Value) -> kd.Value:
    """x itself."""
    return x


ACTIVATIONS: Mapping[str, object] = MappingProxyType(
    {"none": identity, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
)

BACKWARD: Mapping[str, object] = MappingProxyType(
    {"relu": relu_backward, "gelu": gelu_backward, "gelu_tanh": gelu_tanh_backward, "silu": silu_backward}
)
"""Gradients of the activations: of dy and the pre-activation. "none" has none: dy goes on as it is."""
