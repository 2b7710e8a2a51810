"""The gradients of a head and its cross-entropy: an op of its own, made of others a chunk of classes at a time, and what
autograd is told."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops import checks
from kpt.ops.backends import wide_dtype
from kpt.ops.cross_entropy import contract
from kpt.ops.cross_entropy.backward import cross_entropy_backward
from kpt.ops.dtypes import FLOATS
from kpt.ops.flops import product
from kpt.ops.library import define
from kpt.ops.linear_cross_entropy import reference
from kpt.ops.linear_cross_entropy.chunks import implementations, level_chunks, rows_of
from kpt.ops.linear_cross_entropy.shapes import DIMS, SHAPES, backward_arguments
from kpt.ops.registry import SUM, WHOLE, Gradient, Op, Placed, Ready, Sharding

OP = "linear_cross_entropy_backward"
INPUTS = ("x", "weight", "bias")
"""What has a gradient, in order."""


def linear_cross_entropy_backward(
    dloss: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    lse: torch.Tensor,
    count: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients of ``linear_cross_entropy``: of x, weight and bias those that are ``needed`` (one bool for each), in order.

    ``dloss``: (rows,), the gradients of the losses of rows, or that of the one number, expanded; ``lse``: of the shape of the
    target, and ``count``: (), of a mean, what the forward saves, float32 (float64 beside float64). Each gradient is contiguous,
    of the shape and dtype of what it belongs to. Raises InputError for arguments that do not fit.
    """
    given = (dloss, x, weight, target, bias, lse, count, ignore_index, label_smoothing, z_loss, softcap, tuple(needed))
    gradients: list[torch.Tensor] = _dispatch(*given)
    return gradients


def _check(
    dloss: Any, x: Any, weight: Any, target: Any, bias: Any, lse: Any, count: Any, ignore_index: Any, label_smoothing: Any,
    z_loss: Any, softcap: Any, needed: Any,
) -> None:  # fmt: skip
    checks.tensor(OP, "x", x)
    checks.dtype(OP, "x", x.dtype, FLOATS)
    checks.rank(OP, "weight", weight, (2,), "rank 2, (classes, features)")
    checks.shape(OP, "weight", weight, (weight.shape[0], x.shape[-1]), "(classes, features)")
    checks.shape(OP, "target", target, x.shape[:-1], "one class a row")
    checks.dtype(OP, "target", target.dtype, contract.INDICES)
    checks.shape(OP, "lse", lse, target.shape, "one number a row")
    checks.shape(OP, "dloss", dloss, (target.numel(),), "one number a row")
    for name, given in (("dloss", dloss), ("lse", lse), ("count", count)):
        if given is not None:
            checks.dtype(OP, name, given.dtype, (contract.loss_dtype(x),))
    checks.same_dtype(OP, "x", x, weight=weight, bias=bias)
    checks.same_device(OP, "x", x, dloss=dloss, weight=weight, target=target, bias=bias, lse=lse, count=count)
    contract.check_options(OP, ignore_index, "none", label_smoothing, z_loss, softcap)
    if not isinstance(needed, Sequence) or len(needed) != 3 or not all(isinstance(n, bool) for n in needed):
        checks.reject(OP, "needed", repr(needed), f"three bools, for {', '.join(INPUTS)}")
    if needed[2] and bias is None:
        checks.reject(OP, "bias", "None", "a tensor, as its gradient is needed")


def _fake(
    dloss: Any, x: torch.Tensor, weight: torch.Tensor, target: Any, bias: Any, *others: Any
) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t, wanted in zip((x, weight, bias), others[-1], strict=True) if wanted]


def _why_not(dloss: Any, x: torch.Tensor, weight: torch.Tensor, *_: Any) -> str | None:
    return "a tensor is empty" if 0 in (x.numel(), weight.numel()) else wide_dtype(x)


def _flops(dloss: Any, x: Any, weight: torch.Tensor, target: torch.Tensor, *others: Any) -> int:
    needs_x, needs_weight, _ = others[-1]
    return (1 + int(needs_x) + int(needs_weight)) * product(target.numel(), *weight.shape)


def _shardings(_: int, dloss: Any, x: torch.Tensor, *others: Any) -> Iterator[Sharding]:
    outputs: list[Placed] = [0, SUM, SUM]
    if x.ndim > 1:
        given = (0, 0, WHOLE, 0, WHOLE, 0, WHOLE, None, None, None, None, None)
        yield Sharding([o for o, n in zip(outputs, others[-1], strict=True) if n], given)


def _run(
    dloss: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None,
    lse: torch.Tensor, count: torch.Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float,
    softcap: float | None, needed: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    if not any(needed):
        return []
    rows, classes = rows_of(x), weight.shape[0]
    dx = torch.zeros_like(rows, dtype=torch.float32, memory_format=torch.contiguous_format) if needed[0] else None
    dweight = weight.new_empty(weight.shape) if needed[1] else None
    dbias = bias.new_empty(classes) if needed[2] and bias is not None else None
    given = (target.reshape(-1), lse.reshape(-1), count)
    for part, known in level_chunks(weight, rows.shape[0]):
        logits = F.linear(rows, weight[part], None if bias is None else bias[part])
        slopes = cross_entropy_backward(
            dloss, logits, *given, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
            softcap=softcap, first=part.start, classes=classes,
        )  # fmt: skip
        del logits
        if dweight is not None:
            torch.mm(slopes.T, rows, out=dweight[part])
        if dbias is not None:
            dbias[part] = slopes.sum(0)
        if dx is not None:
            slopes[:, :known] = 0
            dx += slopes @ weight[part]
        del slopes
    made = (None if dx is None else dx.to(x.dtype).view(x.shape), dweight, dbias)
    return [gradient for gradient in made if gradient is not None]


def _inner(
    dloss: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, bias: Any, lse: torch.Tensor,
    count: torch.Tensor | None, *options: Any,
) -> tuple[str, tuple[Any, ...]]:  # fmt: skip
    """The gradient of the logits of the first chunk."""
    part, _ = next(level_chunks(weight, target.numel()))
    logits = x.new_empty(target.numel(), part.stop)
    given = (dloss, logits, target.reshape(-1), lse.reshape(-1), count, None)
    return "cross_entropy_backward", (*given, *options[:4], 0, weight.shape[0])


_dispatch = define(
    Op(
        schema="(Tensor dloss, Tensor x, Tensor weight, Tensor target, Tensor? bias, Tensor lse, Tensor? count, "
        "int ignore_index, float label_smoothing, float z_loss, float? softcap, bool[] needed) -> Tensor[]",
        reference=reference.linear_cross_entropy_backward,
        public=linear_cross_entropy_backward,
        fake=_fake,
        check=_check,
        kernels=implementations(_run, _why_not, _inner),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        multiplies=True,
        flops=_flops,
        shardings=_shardings,
    )
)


def _forward(
    dispatch: Ready, needed: Sequence[bool], x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor,
    bias: torch.Tensor | None, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float,
    softcap: float | None, saving: Any,
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:  # fmt: skip
    loss, lse, count = dispatch(x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, True)
    kept = count if reduction == "mean" else None
    return [loss], (x, weight, target, bias, lse, kept, ignore_index, label_smoothing, z_loss, softcap)


def _backward(saved: tuple[Any, ...], needed: Sequence[bool], dloss: torch.Tensor) -> list[torch.Tensor]:
    slopes = dloss.reshape(-1).expand(saved[2].numel())
    gradients: list[torch.Tensor] = _dispatch(slopes, *saved, tuple(needed))
    return gradients


GRADIENT = Gradient(INPUTS, _forward, _backward)
"""Saves the arguments and the log-sum-exps: no gradient is there before the backward, nor are logits."""
