"""The op of a head and its cross-entropy: public function, checks, and the ops that it is made of, for chunks of rows."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F

from kpt.ops import checks
from kpt.ops.backends import wide_dtype
from kpt.ops.cross_entropy import contract
from kpt.ops.cross_entropy.op import cross_entropy
from kpt.ops.dtypes import FLOATS
from kpt.ops.flops import product
from kpt.ops.library import define
from kpt.ops.linear_cross_entropy import reference
from kpt.ops.linear_cross_entropy.backward import GRADIENT
from kpt.ops.linear_cross_entropy.chunks import chunks, implementations, level, level_classes, rows_of
from kpt.ops.linear_cross_entropy.shapes import DIMS, SHAPES, arguments
from kpt.ops.registry import SUM, WHOLE, Op, Sharding

OP = "linear_cross_entropy"


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """``cross_entropy(x @ weight.T + bias, target)`` without all logits in memory: those of a chunk are, some 2 ** 26.

    ``x``: (..., K), ``weight``: (N, K), ``bias``: (N,), float16, bfloat16, float32 or float64, all alike; ``target``: (...),
    int64 or int32. The other arguments, and the result, are those of ``cross_entropy``. Products are PyTorch's, and logits are
    rounded to the type of x, as by two ops; in half precision the weight is padded where its classes are no multiple of 8, so
    that rows of logits begin at multiples of 16 bytes. The backward makes the logits again, a chunk of classes at a time, for
    one product more: the gradient of a class's weights is then a single product, rounded once, and no gradient is there before
    the backward. Where PyTorch serves (on a CPU unasked, float64) it does hold the logits. Raises InputError for arguments that
    do not fit.
    """
    options = (ignore_index, reduction, label_smoothing, z_loss, softcap)
    loss: torch.Tensor = _dispatch(x, weight, target, bias, *options, None)[0]
    return loss


def _check(
    x: Any, weight: Any, target: Any, bias: Any, ignore_index: Any, reduction: Any, label_smoothing: Any, z_loss: Any,
    softcap: Any, saving: Any = None,
) -> None:  # fmt: skip
    checks.tensor(OP, "x", x)
    checks.rank(OP, "weight", weight, (2,), "rank 2, (classes, features)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        checks.reject(OP, "x", checks.shape_of(x), f"(..., {weight.shape[1]}), as weight is {checks.shape_of(weight)}")
    checks.dtype(OP, "x", x.dtype, FLOATS)
    checks.shape(OP, "target", target, x.shape[:-1], "one class a row")
    checks.dtype(OP, "target", target.dtype, contract.INDICES)
    if bias is not None:
        checks.shape(OP, "bias", bias, weight.shape[:1], "(classes,)")
    checks.same_dtype(OP, "x", x, weight=weight, bias=bias)
    checks.same_device(OP, "x", x, weight=weight, target=target, bias=bias)
    contract.check_options(OP, ignore_index, reduction, label_smoothing, z_loss, softcap)


def _fake(
    x: torch.Tensor, weight: Any, target: torch.Tensor, bias: Any, ignore_index: Any, reduction: str, label_smoothing: Any,
    z_loss: Any, softcap: Any, saving: bool | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    rows: Any = target.shape
    shapes = [rows if reduction == "none" else (), *([rows, ()] if saving else [])]
    return [x.new_empty(shape, dtype=contract.loss_dtype(x)) for shape in shapes]


def _why_not(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> str | None:
    return "a tensor is empty" if 0 in (x.numel(), weight.numel()) else wide_dtype(x)


def _shardings(
    _: int, x: torch.Tensor, weight: Any, target: Any, bias: Any, ignored: Any, reduction: str, *__: Any
) -> Iterator[Sharding]:
    """By rows, but for the mean, whose parts do not add up."""
    if x.ndim > 1 and reduction != "mean":
        first = 0 if reduction == "none" else SUM
        yield Sharding((first, 0, SUM), (0, WHOLE, 0, WHOLE, None, None, None, None, None, None))


def _run(
    x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None, ignore_index: int, reduction: str,
    label_smoothing: float, z_loss: float, softcap: float | None, saving: bool | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    rows, targets = rows_of(x), target.reshape(-1)
    losses, lse = (x.new_empty(targets.shape, dtype=torch.float32) for _ in range(2))
    classes, weight, bias = weight.shape[0], level(weight), None if bias is None else level(bias)
    for part in chunks(rows.shape[0], classes):
        logits = F.linear(rows[part], weight, bias)[:, :classes]
        losses[part], lse[part] = cross_entropy(
            logits, targets[part], ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing,
            z_loss=z_loss, softcap=softcap, return_lse=True,
        )  # fmt: skip
        del logits  # before the next are made
    count = (targets != ignore_index).sum(dtype=torch.float32)
    loss = losses.view(target.shape) if reduction == "none" else losses.sum()
    if reduction == "mean":
        loss = loss / count
    return [loss, *([lse.view(target.shape), count] if saving else [])]


def _inner(
    x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, bias: Any, *options: Any
) -> tuple[str, tuple[Any, ...]]:
    """The cross-entropy of the first chunk."""
    ignore_index, _, label_smoothing, z_loss, softcap, *_ = options
    part = next(chunks(target.numel(), weight.shape[0]))
    logits = x.new_empty(part.stop, level_classes(weight))[:, : weight.shape[0]]
    target = target.reshape(-1)[part]
    return "cross_entropy", (logits, target, None, ignore_index, "none", label_smoothing, z_loss, softcap, True, None)


_dispatch = define(
    Op(
        schema="(Tensor x, Tensor weight, Tensor target, Tensor? bias, int ignore_index, str reduction, float label_smoothing, "
        "float z_loss, float? softcap, bool? saving=None) -> Tensor[]",
        reference=reference.linear_cross_entropy,
        public=linear_cross_entropy,
        fake=_fake,
        check=_check,
        kernels=implementations(_run, _why_not, _inner),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "lower", "cpu": "lower", "xla": "lower"},
        gradient=GRADIENT,
        multiplies=True,
        flops=lambda x, weight, target, *_: product(target.numel(), *weight.shape),
        shardings=_shardings,
    )
)
