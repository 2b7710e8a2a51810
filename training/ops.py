"""The ways to compute a model's parts: with kpt, with PyTorch, and with PyTorch rounded at random.

The last is the yardstick. Two correct implementations differ by rounding only, and training amplifies any difference, so
"the same curve" means: no further apart than PyTorch is from itself when its results are rounded another way. Here every
result of norms, gates and attention, values and gradients, is multiplied by 1 + d, where d is drawn anew from the interval
that one rounding of the type computed in may err by (Monte Carlo arithmetic: Parker 1997, UCLA CSD-970002).
"""

from collections.abc import Callable
from dataclasses import replace
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
        gated_silu=lambda gate, up: kpt.ops.gated_act(gate, up, "silu"),
        rotary=kpt.ops.rotary,
        attention=_kpt_attention,
        cross_entropy=_kpt_cross_entropy,
    )


def _kpt_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    o = kpt.ops.flash_attention(q, k, v, causal=True)
    assert isinstance(o, Tensor), "no log-sum-exp was asked for"
    return o


def _kpt_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    loss = kpt.ops.cross_entropy(logits, targets)
    assert isinstance(loss, Tensor), "no log-sum-exp was asked for"
    return loss


def of_pytorch() -> Ops:
    """PyTorch's own, as it chooses to run them."""
    return Ops(
        rms_norm=lambda x, weight: F.rms_norm(x, (x.shape[-1],), weight, EPS),
        gated_silu=lambda gate, up: F.silu(gate) * up,
        rotary=lambda q, k, cos, sin: (rotated(q, cos, sin), rotated(k, cos, sin)),
        attention=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        cross_entropy=lambda logits, targets: F.cross_entropy(logits.float(), targets),
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (B, H, S, D) turned by their positions, of the same dtype."""
    (cos, _), (sin, _) = cos.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def rounded_at_random(ops: Ops, seed: int, device: str) -> Ops:
    """The same ops with results of norms, gates and attention off by up to one rounding, at random."""
    generator = torch.Generator(device).manual_seed(seed)

    def around(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*inputs: Tensor) -> Tensor:
            unit = torch.finfo(inputs[0].dtype).eps / 2
            out = op(*(_gradient_off(x, unit, generator) for x in inputs))
            return _value_off(out, unit, generator)

        return call

    norm, gate, attention = map(around, (ops.rms_norm, ops.gated_silu, ops.attention))
    return replace(ops, rms_norm=norm, gated_silu=gate, attention=attention)


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
