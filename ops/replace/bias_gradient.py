"""``F.linear`` whose bias has its gradient from kpt's sums of columns, and all else from PyTorch.

PyTorch sums the rows of an output's gradient with few programs. On an H200, device microseconds of its sum and of kpt's two
kernels, bfloat16: 8192 x 768 15.6 and 6.2, 16384 x 768 26.2 and 7.8, 16384 x 3072 41.3 and 28.8; 2048 x 768, in less than the
host takes to start either, 9.0 and 5.4.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.autocast import cast
from kpt.ops.choice import Holding, preferred
from kpt.ops.dtypes import KERNEL_FLOATS
from kpt.ops.eager import PLAIN, have_memory, is_autocasting, is_called_plainly, no_views
from kpt.ops.linear_act.backward import linear_act_backward

FEWEST = 1 << 22
"""Elements of an output on a GPU. With fewer, a step waits for its host, which here has two kernels to start and not one."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``, to the bit but for the bias's gradient, which is summed in float32 in one order.

    It is PyTorch's where that gradient is not wanted or ``FEWEST`` counts against it; on devices without its kernels, unless
    they are preferred; and for whatever looks at functions: torch.compile, modes of theirs, transforms, subclasses of tensors.
    """
    if bias is None or not torch.is_grad_enabled() or not is_called_plainly() or not _gains(x, weight, bias):
        return F.linear(x, weight, bias)
    device = x.device.type
    if is_autocasting() and torch.is_autocast_enabled(device):
        return _follow(*cast("lower", device, (x, weight, bias)))
    return _follow(x, weight, bias)


def _gains(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether the sum by kernels is possible, and worth it."""
    if type(x) not in PLAIN or type(weight) not in PLAIN or type(bias) not in PLAIN or x.dtype not in KERNEL_FLOATS:
        return False
    if not bias.requires_grad or bias.ndim != 1 or x.ndim < 2:
        return False
    if x.numel() == 0 or bias.numel() == 0 or not have_memory((x, weight)) or not x.is_contiguous():
        return False
    if (preference := preferred()) is not None:
        return preference != "reference"
    return x.device.type == "cuda" and x.numel() // x.shape[-1] * weight.shape[0] >= FEWEST


class _Linear(torch.autograd.Function):
    """One node of autograd where PyTorch has four: the host is done sooner than it would be with one beside those."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.preference = preferred()
        with no_views():  # one that a function gives could not be modified in place
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        if torch.is_grad_enabled():  # to be differentiated again, which kpt's ops are not
            db = rows.sum(0)
        else:
            with Holding(ctx.preference):
                (db,) = linear_act_backward(rows, None, None, needed=(False, False, True))
        dx = torch.mm(rows, weight).view(*dy.shape[:-1], weight.shape[1]) if needs_x else None
        dw = torch.mm(rows.T, x.view(-1, x.shape[-1])) if needs_weight else None
        return dx, dw, db


_follow: Callable[..., torch.Tensor] = super(torch.autograd.Function, _Linear).apply
"""Without the questions about torch.func that ``Function.apply`` asks first: under its transforms PyTorch's serves."""
