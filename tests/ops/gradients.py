"""Small layers to differentiate, and the gradients that they must have."""

from collections.abc import Callable

import torch

from kpt.ops import linear_act
from tests.tolerances import assert_close

Tensors = tuple[torch.Tensor, ...]


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensors:
    return tuple(
        torch.randn(s, generator=torch.Generator().manual_seed(sum(s))).to(dtype).requires_grad_() for s in shapes
    )


def linear_leaves(dtype: torch.dtype = torch.float32) -> Tensors:
    """x, weight and bias."""
    return leaves((2, 5, 9), (7, 9), (7,), dtype=dtype)


def gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear_act(x, weight, bias, activation="gelu")


def gradients(function: Callable[..., torch.Tensor], given: Tensors) -> Tensors:
    """Of the sum of squares."""
    return torch.autograd.grad(function(*given).square().sum(), given)


def in_float64(function: Callable[..., torch.Tensor], given: Tensors) -> Tensors:
    """The same gradients by PyTorch's own autograd, in float64."""
    return gradients(function, tuple(t.detach().double().requires_grad_() for t in given))


def assert_all_close(got: Tensors, expected: Tensors, dtype: str = "f32") -> None:
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, dtype, 100)
