"""The three ways to compute a model's parts: with kpt, with PyTorch, and with PyTorch rounded at random.

The last is the yardstick. Two correct implementations differ by rounding only, and training amplifies any difference, so
"the same curve" means: no further apart than PyTorch is from itself when its results are rounded another way. Here every
result of the three parts, values and gradients, is multiplied by 1 + d, where d is drawn anew from the interval that one
rounding of the type computed in may err by (Monte Carlo arithmetic: Parker 1997, UCLA CSD-970002).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kpt.ops
from training.model import EPS, Ops


def of_kpt() -> Ops:
    """kpt's ops: what ``kpt.replace_modules`` would swap. A linear without an activation stays PyTorch's."""
    return Ops(
        rms_norm=lambda x, weight: kpt.ops.rms_norm(x, (x.shape[-1],), weight, EPS),
        linear_silu=lambda x, weight: kpt.ops.linear_act(x, weight, activation="silu"),
        attention=_kpt_attention,
    )


def _kpt_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    o = kpt.ops.flash_attention(q, k, v, causal=True)
    assert isinstance(o, Tensor), "no log-sum-exp was asked for"
    return o


def of_pytorch() -> Ops:
    """PyTorch's own, as it chooses to run them."""
    return Ops(
        rms_norm=lambda x, weight: F.rms_norm(x, (x.shape[-1],), weight, EPS),
        linear_silu=lambda x, weight: F.silu(F.linear(x, weight)),
        attention=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    )


def rounded_at_random(ops: Ops, seed: int, device: str) -> Ops:
    """The same ops with every result off by up to one rounding, at random."""
    generator = torch.Generator(device).manual_seed(seed)

    def around(op: Callable[..., Tensor], lowered: bool) -> Callable[..., Tensor]:
        """``lowered``: torch.autocast runs this op in its lower precision; gradients are results in that type too."""

        def call(*inputs: Tensor) -> Tensor:
            kind = inputs[0].device.type
            lower = lowered and torch.is_autocast_enabled(kind)
            unit = torch.finfo(torch.get_autocast_dtype(kind) if lower else inputs[0].dtype).eps / 2
            out = op(*(_gradient_off(x, unit, generator) for x in inputs))
            return _value_off(out, unit, generator)

        return call

    return Ops(around(ops.rms_norm, False), around(ops.linear_silu, True), around(ops.attention, True))


def _off(x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    noise = torch.empty(x.shape, device=x.device).uniform_(-unit, unit, generator=generator)
    return (x + x * noise).to(x.dtype)  # 1 + noise would be 1


class _ValueOff(torch.autograd.Function):
    """Moves values and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
        return _off(x, unit, generator)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _GradientOff(torch.autograd.Function):
    """Moves gradients and lets values through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
        ctx.off = unit, generator
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _off(gradients[0], *ctx.off), None, None


_value_off: Callable[..., Tensor] = _ValueOff.apply
_gradient_off: Callable[..., Tensor] = _GradientOff.apply
