"""Linear, then activation, in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from kpt.ops.linear_act.activations import (
    FLAT,
    LAPLACE_DENSITY,
    LAPLACE_MEAN,
    LAPLACE_RATE,
    with_aliases,
)
from kpt.ops.linear_act.weights import is_transposed

_aten = torch.ops.aten


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _quick_gelu_backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(1.702 * x)
    return dy * (s * (1 + 1.702 * x * (1 - s)))


def _gelu_10_backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.where(F.gelu(x) > 10, 0, _aten.gelu_backward(dy, x))


def _laplace(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf((x - LAPLACE_MEAN) * LAPLACE_RATE))


def _laplace_backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return dy * (LAPLACE_DENSITY * torch.exp(-((x - LAPLACE_MEAN) * LAPLACE_RATE).square()))


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = with_aliases(
    {
        "none": _identity,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "mish": F.mish,
        "hardswish": F.hardswish,
        "relu2": lambda x: F.relu(x).square(),
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "laplace": _laplace,
    }
)
"""PyTorch's activations by the names that ``linear_act`` takes; the kernels' own table has the same names."""


BACKWARD: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = with_aliases(
    {
        "relu": lambda dy, z: _aten.threshold_backward(dy, z, 0),
        "gelu": _aten.gelu_backward,
        "gelu_tanh": partial(_aten.gelu_backward, approximate="tanh"),
        "silu": _aten.silu_backward,
        "quick_gelu": _quick_gelu_backward,
        "gelu_10": _gelu_10_backward,
        "sigmoid": lambda dy, z: _aten.sigmoid_backward(dy, torch.sigmoid(z)),
        "tanh": lambda dy, z: _aten.tanh_backward(dy, torch.tanh(z)),
        "mish": _aten.mish_backward,
        "hardswish": _aten.hardswish_backward,
        "relu2": lambda dy, z: dy * (2 * F.relu(z)),
        "relu6": lambda dy, z: _aten.hardtanh_backward(dy, z, 0, 6),
        "leaky_relu": lambda dy, z: _aten.leaky_relu_backward(dy, z, 0.01, False),
        "laplace": _laplace_backward,
    }
)
"""PyTorch's gradients of them: of dy and the pre-activation. "none" has none: dy goes on as it is."""


def linear_act(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, recompute: bool = False
) -> torch.Tensor:
    """``activation(torch.nn.functional.linear(x, weight, bias))``; what PyTorch's autograd keeps is its business."""
    return ACTIVATIONS[activation](F.linear(x, weight, bias)).contiguous()


def linear_act_saving(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """``linear_act`` and its pre-activation, of float16 at most ``FLAT``, in memory of their own."""
    z = F.linear(x, weight, bias).contiguous()
    y = ACTIVATIONS[activation](z)
    return y.clone() if y is z else y, z.clamp(-FLAT, FLAT) if z.dtype == torch.float16 else z


def linear_act_backward(
    dy: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    preactivation: torch.Tensor | None,
    activation: str,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """The wanted gradients, by PyTorch's own ops."""
    dz = dy
    if activation != "none":
        if preactivation is None:
            assert x is not None
            assert weight is not None
            preactivation = F.linear(x, weight, bias)
        dz = BACKWARD[activation](dy, preactivation)
    rows = _matrix(dz)
    gradients = []
    if needed[0]:
        assert weight is not None
        gradients.append(torch.matmul(dz, weight).contiguous())
    if needed[1]:
        assert x is not None
        inner, transposed = _matrix(x), weight is not None and is_transposed(weight)
        gradients.append((inner.T @ rows).T if transposed else (rows.T @ inner).contiguous())
    if needed[2]:
        gradients.append(rows.sum(0))
    return gradients


def _matrix(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
