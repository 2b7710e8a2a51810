"""Activations from their formulas, in PyTorch, for float64 and its autograd: what kernels and references are held against."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

Formula = Callable[[torch.Tensor], torch.Tensor]


def _gelu(t: torch.Tensor) -> torch.Tensor:
    return t * 0.5 * (1 + torch.erf(t / math.sqrt(2)))


def _gelu_tanh(t: torch.Tensor) -> torch.Tensor:
    return 0.5 * t * (1 + torch.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3)))


def _silu(t: torch.Tensor) -> torch.Tensor:
    return t * torch.sigmoid(t)


FORMULAS: dict[str, Formula] = {
    "none": lambda t: t,
    "relu": lambda t: torch.where(t > 0, t, 0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t),
    "gelu_10": lambda t: _gelu(t).clamp(-10, 10),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": lambda t: t * torch.tanh(torch.logaddexp(t, torch.zeros_like(t))),
    "hardswish": F.hardswish,  # whose slopes where it bends are PyTorch's choice, as those of the next
    "relu2": lambda t: torch.relu(t) ** 2,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "laplace": lambda t: 0.5 * (1 + torch.erf((t - 0.707107) / (0.282095 * math.sqrt(2)))),
    "swish": _silu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
}  # fmt: skip


def slope(activation: str, at: torch.Tensor) -> torch.Tensor:
    """The derivative, by autograd in float64."""
    at = at.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(FORMULAS[activation](at).sum(), at)
    return found
