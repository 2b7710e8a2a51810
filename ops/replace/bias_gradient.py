"""``F.linear`` whose bias has its gradient from kpt's sums of columns, and all else from PyTorch.

PyTorch sums the rows of an output's gradient with few programs. On an H200, device microseconds of its sum and of kpt's two
kernels, bfloat16: 8192 x 768 15.6 and 6.2, 16384 x 768 26.2 and 7.8, 16384 x 3072 41.3 and 28.8; 2048 x 768, in less than the
host takes to start either, 9.0 and 5.4.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.choice import Holding, preferred
from kpt.ops.eager import PLAIN, is_plain
from kpt.ops.linear_act.backward import linear_act_backward

FEWEST = 1 << 22
"""Elements of an output on a GPU. With fewer, a step waits for its host, which here has two kernels to start and not one."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``, to the bit but for the bias's gradient, which is summed in float32 in one order.

    It is PyTorch's where that gradient is not wanted or ``FEWEST`` counts against it; on devices without its kernels, unless
    they are preferred; and for whatever looks at operations: torch.compile, modes, transforms, subclasses of tensors.
    """
    if not is_plain() or bias is None or not _gains(x, weight, bias):
        return F.linear(x, weight, bias)
    y = F.linear(x.view(-1, x.shape[-1]), weight, bias.detach())  # a matrix: what is marked as modified should be no view
    return _added(y, bias).view(*x.shape[:-1], y.shape[1])


def _gains(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether the sum by kernels is possible, and worth it."""
    if not (bias.requires_grad and torch.is_grad_enabled() and x.ndim > 1 and x.is_contiguous() and x.numel() > 0):
        return False
    if type(x) not in PLAIN or type(weight) not in PLAIN or type(bias) not in PLAIN:
        return False
    if (preference := preferred()) is not None:
        return preference != "reference"
    return x.device.type == "cuda" and x.numel() // x.shape[-1] * weight.shape[0] >= FEWEST


class _Added(torch.autograd.Function):
    """A matrix to which a bias was added already; autograd learns of that here."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(y)
        ctx.preference, ctx.dtype = preferred(), bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():  # to be differentiated again, which kpt's ops are not
            return dy, dy.sum(0).to(ctx.dtype)
        with Holding(ctx.preference):
            (db,) = linear_act_backward(dy, None, None, needed=(False, False, True))
        return dy, db.to(ctx.dtype)


_added: Callable[..., torch.Tensor] = _Added.apply
