"""Activations as kernel helpers, by the names that ``linear_act`` takes."""

from collections.abc import Mapping
from types import MappingProxyType

import kpt_dsl as kd

SQRT_HALF = 0.7071067811865476
TANH_LINEAR = -2.302208198144325
"""-2 * sqrt(2 / pi) * log2(e)"""
TANH_CUBIC = 0.044715 * TANH_LINEAR


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
def identity(x: kd.Value) -> kd.Value:
    """x itself."""
    return x


ACTIVATIONS: Mapping[str, object] = MappingProxyType(
    {"none": identity, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
)
