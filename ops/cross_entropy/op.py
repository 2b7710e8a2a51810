"""The cross-entropy op: public function, and the kernel calls behind it."""

from collections.abc import Iterator
from typing import Any, Literal

import torch

from kpt.ops.backends import Launch, generated
from kpt.ops.column_sums import share_count
from kpt.ops.cross_entropy import contract, kernels, reference
from kpt.ops.cross_entropy.backward import GRADIENT
from kpt.ops.cross_entropy.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.registry import SUM, WHOLE, Op, Sharding

MOST_SHARES, SHARE_ROWS = 128, 1024
"""Losses are added up over shares of 1024 rows or more, 128 of them at most, which one program then adds up at once."""


def cross_entropy(
    input: torch.Tensor,  # noqa: A002 (the name it has in torch.nn.functional)
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of logits and targets, as ``torch.nn.functional.cross_entropy``, each logit read once.

    ``input``: (N, C), (C,) or (N, C, d1, ...), float16, bfloat16, float32 or float64. ``target``: classes, (N,), () or
    (N, d1, ...), int64 or int32, or probabilities, floating, of the shape of the input. ``weight``: (C,), of the classes, of
    the input's dtype. A row whose target is ``ignore_index`` costs nothing, and does not count for the "mean", which is NaN
    where no row does. ``label_smoothing``: how much of the target is spread over all classes, from 0 to 1 (Szegedy et al. 2015,
    arXiv:1512.00567). ``z_loss``: adds ``z_loss * lse ** 2`` to each row's loss, with lse = log(sum(exp(input))), which keeps
    logits from drifting (Chowdhery et al. 2022, arXiv:2204.02311, there 1e-4); it is not weighted by classes. ``softcap``: all
    of this is of ``softcap * tanh(input / softcap)`` in the place of the input, as in Gemma 2 (arXiv:2408.00118, there 30).

    Gives the loss, () or for "none" of the shape of the target, and with ``return_lse`` also lse, (N,) or (N, d1, ...): both
    float32, which half precision is not rounded to again (float64 for float64). Kernels serve classes that lie side by side
    in memory, as in (N, C), or (N, d1, C) transposed; PyTorch serves class weights, probabilities and other layouts. Sums are
    made in the same order every time. A target that is no class is an error where an index is one (docs/language.md). Raises
    InputError for arguments that do not fit.
    """
    options = (ignore_index, reduction, label_smoothing, z_loss, softcap)
    outputs = _dispatch(input, target, weight, *options, return_lse, None)
    return (outputs[0], outputs[1]) if return_lse else outputs[0]


def _fake(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    return_lse: bool,
    return_count: bool | None = None,
) -> list[torch.Tensor]:
    dtype, rows = contract.loss_dtype(x), contract.rows_shape(x)
    shapes: list[Any] = [rows if reduction == "none" else ()]
    shapes += [rows] * return_lse + [()] * bool(return_count)
    return [x.new_empty(shape, dtype=dtype) for shape in shapes]


def _shardings(
    _: int, x: torch.Tensor, target: Any, weight: Any, ignored: Any, reduction: str, *__: Any
) -> Iterator[Sharding]:
    """By rows, but for the mean, whose parts do not add up."""
    if x.ndim > 1 and reduction != "mean":
        first = 0 if reduction == "none" else SUM
        yield Sharding((first, 0), (0, 0, WHOLE, None, None, None, None, None, None, None))


def _why_not(
    x: torch.Tensor, target: torch.Tensor, weight: Any, ignored: int, reduction: str, smoothing: float, z_loss: float,
    softcap: float | None, *_: Any,
) -> str | None:  # fmt: skip
    return contract.why_not(x, target, weight, ignored, softcap)


def _run(
    launch: Launch,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    return_lse: bool,
    return_count: bool | None = None,
) -> list[torch.Tensor]:
    shape = target.shape
    rows, target = contract.as_rows(x), target.reshape(-1)
    loss, lse = (x.new_empty(target.shape, dtype=torch.float32) for _ in range(2))
    launch(
        kernels.cross_entropy_fwd, rows, target, loss, lse, ignore_index, label_smoothing or None, z_loss or None, softcap
    )
    besides = [lse.view(shape)] if return_lse else []
    if reduction == "none":
        return [loss.view(shape), *besides]
    shares = share_count(rows.shape[0] // SHARE_ROWS, MOST_SHARES)
    totals, kept = (x.new_empty(shares, dtype=torch.float32) for _ in range(2))
    result, count = (x.new_empty((), dtype=torch.float32) for _ in range(2))
    launch(kernels.partial_losses, loss, target, totals, kept, ignore_index)
    launch(kernels.reduce_losses, totals, kept, result.view(1), count.view(1), reduction == "mean")
    return [result, *besides, *([count] if return_count else [])]


_dispatch = define(
    Op(
        schema="(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, float label_smoothing, "
        "float z_loss, float? softcap, bool return_lse, bool? return_count=None) -> Tensor[]",
        reference=reference.cross_entropy,
        public=cross_entropy,
        fake=_fake,
        check=contract.check,
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        gradient=GRADIENT,
        shardings=_shardings,
    )
)
