"""``F.linear``, of which kpt does a part more quickly than PyTorch on a GPU: the gradient of its bias; in half precision also
products of matrices whose rows begin at no multiples of 16 bytes.

PyTorch sums the rows of an output's gradient with few programs. On an H200, device microseconds of its sum and of kpt's two
kernels, bfloat16: 8192 x 768 15.6 and 6.2, 16384 x 768 26.2 and 7.8, 16384 x 3072 41.3 and 28.8; 2048 x 768, in less than the
host takes to start either, 9.0 and 5.4. The products: ``kpt.ops.linear_act.alignment``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.autocast import cast
from kpt.ops.choice import Holding, preferred
from kpt.ops.dtypes import KERNEL_FLOATS
from kpt.ops.eager import PLAIN, have_memory, is_autocasting, is_called_plainly, no_views
from kpt.ops.linear_act.alignment import is_quicker
from kpt.ops.linear_act.backward import linear_act_backward
from kpt.ops.linear_act.op import linear_act

FEWEST = 1 << 22
"""Elements of an output on a GPU. With fewer, a step waits for its host, which has two kernels to start for a bias, not one."""

HALVES = (torch.float16, torch.bfloat16)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``, to the bit but for the bias's gradient, which is summed in float32 in one order.

    It is PyTorch's where that gradient is not wanted or ``FEWEST`` counts against it; on devices without its kernels, unless
    they are preferred; and for whatever looks at functions: torch.compile, modes of theirs, transforms, subclasses of tensors.
    """
    if bias is None or not torch.is_grad_enabled() or not is_called_plainly() or not _has_slow_sum(x, weight, bias):
        return F.linear(x, weight, bias)
    if is_autocasting():
        x, weight, bias = _lowered(x, weight, bias)
    return _follow(x, weight, bias, F.linear, _with_kpts_sum)


def unaligned_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by kpt's product, forward and backward, where that is quicker for how the rows of its
    matrices lie; else ``linear``. Its output is contiguous."""
    if not is_called_plainly() or not _has_slow_product(x, weight, bias):
        return linear(x, weight, bias)
    given = _lowered(x, weight, bias) if is_autocasting() else (x, weight, bias)
    if any(t is not None and (t.dtype is not given[0].dtype or t.dtype not in HALVES) for t in given):
        return linear(*given)
    return _follow(*given, linear_act, _all_kpts) if torch.is_grad_enabled() else linear_act(*given)


Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _lowered(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Given:
    """As autocast gives them to ``F.linear``."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, weight, bias = cast("lower", device, (x, weight, bias))
    return x, weight, bias


def _has_slow_sum(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether the sum by kernels is possible, and worth it; in few questions, for each layer of a step asks them."""
    if type(x) not in PLAIN or type(weight) not in PLAIN or type(bias) not in PLAIN or not bias.requires_grad:
        return False
    if not have_memory((x, weight)) or x.ndim < 2 or bias.ndim != 1 or (outputs := x.numel() * bias.numel()) == 0:
        return False
    if (preference := preferred()) is None:
        is_worth_it = x.is_cuda and outputs >= FEWEST * x.size(-1)
    else:
        is_worth_it = preference != "reference"
    return is_worth_it and x.dtype in KERNEL_FLOATS and x.is_contiguous()


def _has_slow_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether PyTorch's product is slow for how rows lie, as far as shapes tell. What does not fit is PyTorch's to refuse."""
    if type(x) not in PLAIN or type(weight) not in PLAIN or not (bias is None or type(bias) in PLAIN):
        return False
    if x.ndim < 2 or x.numel() == 0 or weight.ndim != 2 or weight.numel() == 0 or not have_memory((x, weight)):
        return False
    features, inner = weight.shape
    if x.shape[-1] != inner or not (bias is None or bias.shape == (features,)):
        return False
    if (preference := preferred()) is not None:
        return preference != "reference"
    by_cublas = x.is_cuda and torch.version.hip is None
    return by_cublas and is_quicker(x.numel() // inner, features, inner, trained=torch.is_grad_enabled())


Wanted = Sequence[bool]
"""Which gradients are wanted, of x, weight and bias."""

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class _Linear(torch.autograd.Function):
    """One node of autograd where PyTorch has four: the host is done sooner than it would be with one beside those."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
        multiply: Callable[..., torch.Tensor], differentiate: Callable[..., Gradients],
    ) -> torch.Tensor:  # fmt: skip
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.preference, ctx.differentiate = preferred(), differentiate
        with no_views():  # one that a function gives could not be modified in place
            return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        rows = dy.reshape(-1, dy.shape[-1])
        x_rows = None if x is None else x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():  # to be differentiated again, which kpt's ops are not
            dx, dw, db = _all_pytorchs(rows, x_rows, weight, needed)
        else:
            with Holding(ctx.preference):
                dx, dw, db = ctx.differentiate(rows, x_rows, weight, needed)
        return None if dx is None else dx.view(*dy.shape[:-1], dx.shape[-1]), dw, db, None, None


def _all_pytorchs(dy: torch.Tensor, x: Any, weight: Any, needed: Wanted) -> Gradients:
    dx = torch.mm(dy, weight) if needed[0] else None
    dw = torch.mm(dy.T, x) if needed[1] else None
    return dx, dw, dy.sum(0) if needed[2] else None


def _with_kpts_sum(dy: torch.Tensor, x: Any, weight: Any, needed: Wanted) -> Gradients:
    (db,) = linear_act_backward(dy, None, None, needed=(False, False, True))
    return *_all_pytorchs(dy, x, weight, (*needed[:2], False))[:2], db


def _all_kpts(dy: torch.Tensor, x: Any, weight: Any, needed: Wanted) -> Gradients:
    made = iter(linear_act_backward(dy, x, weight, needed=needed))
    dx, dw, db = [next(made) if wanted else None for wanted in needed]
    return dx, dw, db


_follow: Callable[..., torch.Tensor] = super(torch.autograd.Function, _Linear).apply
"""Without the questions about torch.func that ``Function.apply`` asks first: under its transforms PyTorch's serves."""

_Linear._backward_cls.apply = _Linear.backward  # type: ignore[attr-defined]
"""What the engine calls of a node: without asking each time which of two functions the class has."""
