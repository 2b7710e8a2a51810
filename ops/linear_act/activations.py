"""Activations as kernel helpers, by the names that ``linear_act`` takes."""

from collections.abc import Mapping
from types import MappingProxyType

import kpt_dsl as kd

SQRT_HALF = 0.7071067811865476
SQRT_2_OVER_PI = 0.7978845608028654


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
    """The tanh approximation of gelu, from the same paper. (1 + tanh u) / 2 is sigmoid 2u: cheaper, and exact far below zero."""
    return x * kd.sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))


@kd.function
def silu(x: kd.Value) -> kd.Value:
    """x * sigmoid(x)."""
    return x * kd.sigmoid(x)


@kd.function
def identity(x: kd.Value) -> kd.Value:
    """x itself."""
    return x


ACTIVATIONS: Mapping[str, object] = MappingProxyType(
    {"none": identity, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
)
