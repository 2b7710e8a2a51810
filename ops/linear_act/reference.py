"""Linear, then activation, in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F

from kpt.ops.linear_act.activations import FLAT


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "none": _identity,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
    }
)
"""PyTorch's activations by the names that ``linear_act`` takes; the kernels' own table has the same names."""


_aten = torch.ops.aten

BACKWARD: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "relu": lambda dy, z: _aten.threshold_backward(dy, z, 0),
        "gelu": _aten.gelu_backward,
        "gelu_tanh": partial(_aten.gelu_backward, approximate="tanh"),
        "silu": _aten.silu_backward,
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
        gradients.append((rows.T @ _matrix(x)).contiguous())
    if needed[2]:
        gradients.append(rows.sum(0))
    return gradients


def _matrix(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
