"""What the ops of a linear layer with its activation check alike."""

import math
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.dtypes import FLOATS
from kpt.ops.flops import product
from kpt.ops.linear_act.activations import ACTIVATIONS


def check_linear(op: str, x: Any, weight: Any, bias: Any, activation: Any) -> None:
    """Raises InputError unless x is (..., K), weight (N, K), bias (N,) or None, and the activation known."""
    checks.tensor(op, "x", x)
    checks.rank(op, "weight", weight, (2,), "rank 2, (features out, features in)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        checks.reject(op, "x", checks.shape_of(x), f"(..., {weight.shape[1]}), as weight is {checks.shape_of(weight)}")
    if bias is not None:
        checks.shape(op, "bias", bias, (weight.shape[0],), "(features out,)")
    checks.dtype(op, "x", x.dtype, FLOATS)
    checks.same_dtype(op, "x", x, weight=weight, bias=bias)
    checks.same_device(op, "x", x, weight=weight, bias=bias)
    check_activation(op, activation)


def check_activation(op: str, activation: Any) -> None:
    """Raises InputError for an unknown activation."""
    if activation not in ACTIVATIONS:
        checks.reject(op, "activation", repr(activation), ", ".join(ACTIVATIONS))


def flops(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> int:
    """Of the forward's product, which a saved pre-activation adds nothing to."""
    return product(math.prod(x.shape[:-1]), *weight.shape)
