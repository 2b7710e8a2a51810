"""The gradient of cross-entropy: an op of its own, the kernel call behind it, and what autograd is told."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.cross_entropy import contract, reference
from kpt.ops.cross_entropy.backward_kernels import cross_entropy_bwd
from kpt.ops.cross_entropy.shapes import DIMS, SHAPES, backward_arguments
from kpt.ops.dtypes import FLOATS
from kpt.ops.library import define
from kpt.ops.registry import WHOLE, Gradient, Op, Ready, Sharding

OP = "cross_entropy_backward"


def cross_entropy_backward(
    dloss: torch.Tensor,
    input: torch.Tensor,  # noqa: A002 (the name it has in cross_entropy)
    target: torch.Tensor,
    lse: torch.Tensor,
    count: torch.Tensor | None = None,
    dlse: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    first: int = 0,
    classes: int | None = None,
) -> torch.Tensor:
    """The gradient of the logits of ``cross_entropy``, ``input``: (M, N), with classes as ``target``: (M,).

    ``dloss``: (M,), the gradients of the losses of rows, or, of a sum or mean, that of the one number, expanded; ``lse``: (M,),
    what the forward gives; ``count``: (), of a mean, how many targets count; ``dlse``: (M,), the gradients of lse, or None.
    These are float32 (float64 beside float64). ``first`` and ``classes``: the logits are those of N of so many classes, from
    this one on. Gives a contiguous tensor of the shape and dtype of the input, rounded once.
    Raises InputError for arguments that do not fit.
    """
    options = (ignore_index, label_smoothing, z_loss, softcap, first, input.shape[-1] if classes is None else classes)
    dx: torch.Tensor = _dispatch(dloss, input, target, lse, count, dlse, *options)
    return dx


def _check(
    dloss: Any, x: Any, target: Any, lse: Any, count: Any, dlse: Any, ignore_index: Any, label_smoothing: Any, z_loss: Any,
    softcap: Any, first: Any, classes: Any,
) -> None:  # fmt: skip
    checks.rank(OP, "input", x, (2,), "rank 2, (rows, classes)")
    checks.dtype(OP, "input", x.dtype, FLOATS)
    rows = x.shape[:1]
    checks.shape(OP, "target", target, rows, "one class a row")
    checks.dtype(OP, "target", target.dtype, contract.INDICES)
    for name, given, shape in (("dloss", dloss, rows), ("lse", lse, rows), ("count", count, ()), ("dlse", dlse, rows)):
        if given is not None or name in ("dloss", "lse"):
            checks.shape(OP, name, given, shape, "one number a row" if shape else "one number")
            checks.dtype(OP, name, given.dtype, (contract.loss_dtype(x),))
    checks.same_device(OP, "input", x, target=target, dloss=dloss, lse=lse, count=count, dlse=dlse)
    contract.check_options(OP, ignore_index, "none", label_smoothing, z_loss, softcap)
    if not 0 <= first <= classes - x.shape[1]:
        checks.reject(OP, "first", repr(first), f"from 0 to {classes - x.shape[1]}, as there are {classes} classes")


def _fake(dloss: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _why_not(
    dloss: Any, x: torch.Tensor, target: Any, lse: Any, count: Any, dlse: Any, ignore_index: int, smoothing: float,
    z_loss: float, softcap: float | None, *_: Any,
) -> str | None:  # fmt: skip
    return contract.why_not(x, target, None, ignore_index, softcap)


def _shardings(_: int, *__: Any) -> Iterator[Sharding]:
    yield Sharding((0,), (0, 0, 0, 0, WHOLE, 0, None, None, None, None, None, None))


def _run(
    launch: Launch,
    dloss: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    count: torch.Tensor | None,
    dlse: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    first: int,
    classes: int,
) -> torch.Tensor:
    rows = as_matrix(x, x.shape[1])
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format)
    launch(
        cross_entropy_bwd, dloss, rows, target, lse, dx, ignore_index, label_smoothing or None,
        label_smoothing / classes or None, z_loss or None, None if count is None else count.view(1), dlse, first or None,
        softcap,
    )  # fmt: skip
    return dx


_dispatch = define(
    Op(
        schema="(Tensor dloss, Tensor input, Tensor target, Tensor lse, Tensor? count, Tensor? dlse, int ignore_index, "
        "float label_smoothing, float z_loss, float? softcap, SymInt first, SymInt classes) -> Tensor",
        reference=reference.cross_entropy_backward,
        public=cross_entropy_backward,
        fake=_fake,
        check=_check,
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=_shardings,
    )
)


def _forward(
    dispatch: Ready,
    needed: Sequence[bool],
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    return_lse: bool,
    return_count: bool | None,
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """The kernel makes the log-sum-exp in any case."""
    options = (ignore_index, reduction, label_smoothing, z_loss, softcap)
    loss, lse, *count = dispatch(x, target, weight, *options, True, reduction == "mean")
    saved = (x, target, lse, *(count or [None]), ignore_index, label_smoothing, z_loss, softcap)
    return [loss, lse][: 1 + return_lse], saved


def _backward(
    saved: tuple[Any, ...], needed: Sequence[bool], dloss: torch.Tensor | None, dlse: torch.Tensor | None = None
) -> list[torch.Tensor]:
    x, target, lse, count, *options = saved
    rows = contract.as_rows(x)
    slopes = lse.new_zeros(()) if dloss is None else dloss
    slopes = slopes.reshape(-1).expand(rows.shape[0])
    along = None if dlse is None else dlse.reshape(-1)
    given = (slopes, rows, target.reshape(-1), lse.reshape(-1), count, along)
    dx: torch.Tensor = _dispatch(*given, *options, 0, rows.shape[1])
    if x.ndim < 3:
        return [dx.view(x.shape)]
    return [dx.view(*x.shape[:1], *x.shape[2:], x.shape[1]).movedim(-1, 1)]


GRADIENT = Gradient(("input",), _forward, _backward)
"""Saves the logits and their log-sum-exps."""
