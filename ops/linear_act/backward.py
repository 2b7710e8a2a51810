"""The gradients of the linear-with-activation op: public function, checks, the kernel calls, and what autograd is told."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, generated
from kpt.ops.column_sums import column_sums, partial_column_sums, share_count
from kpt.ops.devices import multiprocessors, tpu
from kpt.ops.dtypes import FLOATS
from kpt.ops.flops import product
from kpt.ops.library import define
from kpt.ops.linear_act import backward_kernels as kernels
from kpt.ops.linear_act import reference
from kpt.ops.linear_act.activations import BACKWARD
from kpt.ops.linear_act.alignment import aligned, room_like
from kpt.ops.linear_act.contract import check_activation
from kpt.ops.linear_act.saving import linear_act_saving
from kpt.ops.linear_act.shapes import DIMS, TRAINED, backward_arguments
from kpt.ops.linear_act.weights import as_it_lies, gradient_room
from kpt.ops.registry import SUM, WHOLE, Gradient, Op, Placed, Ready, Sharding

Wanted = Sequence[bool]
"""Which of the gradients of x, weight and bias are wanted."""

MOST_SHARES, SHARE_ROWS = 128, 64
"""Sums of columns are made over shares of 64 rows or more, 128 of them at most: enough programs to fill a device together with
the tiles of the columns, and partial sums of at most 1/32 of the bytes that are summed, in half precision."""

TILES, LONG, BUSY = ((128, 128), (192, 128)), 4096, 0.75
"""The kernel of a weight's gradient gives each tile of these all rows. Where tiles of either size keep a GPU less busy than so,
and there are so many rows, PyTorch's product, which deals out rows too, is quicker. On an H200, kernel and PyTorch's product
(bf16, microseconds): 3072 x 768 over 16384 rows 126 and 113, over 32768 259 and 218; 768 x 3072 over 25216 190 and 168; where
tiles come out even, 4096 x 4096 over 4096 rows 175 and 189, 14336 x 4096 over 8192 1242 and 1342."""

OUTPUT_TELLS = frozenset({"relu"})
"""Activations whose gradient can be told from the output as well as from the pre-activation."""


def linear_act_backward(
    dy: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    preactivation: torch.Tensor | None = None,
    *,
    activation: str = "none",
    needed: Wanted = (True, True, True),
) -> list[torch.Tensor]:
    """The gradients of ``linear_act``: with dz = dy * activation'(z), they are dz @ weight, dz.T @ x and the sum of dz's rows.

    ``dy``: (..., N), the gradient of the output; ``preactivation``: z of the same shape ("relu" takes the output as well),
    made again from ``x``, ``weight`` and ``bias`` where it is None and the activation is not "none". ``x``: (..., K), needed
    for the gradient of weight, ``weight``: (N, K), for that of x; either may be None where neither that nor z takes it. All
    of one dtype. ``needed``: which gradients are wanted, of x, weight and bias. Gives those, in that order, of the same dtype
    and contiguous, or transposed where a ``weight`` is given that is; products and sums accumulate in float32, in the same
    order every time, but for a weight's gradient that PyTorch's product makes (``leaves_idle``), by PyTorch's settings. Raises
    InputError for arguments that do not fit.
    """
    gradients: list[torch.Tensor] = _dispatch(dy, x, weight, bias, preactivation, activation, tuple(needed))
    return gradients


def _check(dy: Any, x: Any, weight: Any, bias: Any, preactivation: Any, activation: Any, needed: Any) -> None:
    op = "linear_act_backward"
    checks.tensor(op, "dy", dy)
    if dy.ndim == 0:
        checks.reject(op, "dy", checks.shape_of(dy), "(..., features out)")
    checks.dtype(op, "dy", dy.dtype, FLOATS)
    check_activation(op, activation)
    if not isinstance(needed, Sequence) or len(needed) != 3 or not all(isinstance(n, bool) for n in needed):
        checks.reject(op, "needed", repr(needed), "three bools, for x, weight and bias")
    again = preactivation is None and activation != "none"
    features = dy.shape[-1]
    if x is None:
        _refuse_missing(op, "x", needed[1], "weight", again)
    else:
        checks.tensor(op, "x", x)
        if x.ndim != dy.ndim or x.shape[:-1] != dy.shape[:-1]:
            rows = ", ".join([str(n) for n in dy.shape[:-1]] + ["features in"])
            checks.reject(op, "x", checks.shape_of(x), f"({rows}), as dy is {checks.shape_of(dy)}")
    if weight is None:
        _refuse_missing(op, "weight", needed[0], "x", again)
    else:
        checks.rank(op, "weight", weight, (2,), "rank 2, (features out, features in)")
        inner = weight.shape[1] if x is None else x.shape[-1]
        checks.shape(op, "weight", weight, (features, inner), "(features out, features in)")
    if bias is not None:
        checks.shape(op, "bias", bias, (features,), "(features out,)")
    if preactivation is not None:
        checks.shape(op, "preactivation", preactivation, dy.shape, "the shape of dy")
    others = {"x": x, "weight": weight, "bias": bias, "preactivation": preactivation}
    checks.same_dtype(op, "dy", dy, **others)
    checks.same_device(op, "dy", dy, **others)


def _refuse_missing(op: str, argument: str, needed: bool, of: str, again: bool) -> None:
    if needed or again:
        what = f"the gradient of {of} is needed" if needed else "the pre-activation is made again"
        checks.reject(op, argument, "None", f"a tensor, as {what}")


def _fake(
    dy: torch.Tensor, x: Any, weight: Any, bias: Any, preactivation: Any, activation: str, needed: Wanted
) -> list[torch.Tensor]:
    gradients = []
    if needed[0]:
        gradients.append(dy.new_empty((*dy.shape[:-1], weight.shape[1])))
    if needed[1]:
        gradients.append(gradient_room(dy, x, weight))
    if needed[2]:
        gradients.append(dy.new_empty(dy.shape[-1:]))
    return gradients


def _flops(
    dy: torch.Tensor, x: Any, weight: Any, bias: Any, preactivation: Any, activation: str, needed: Wanted
) -> int:
    inner = 1 if x is None and weight is None else (weight if x is None else x).shape[-1]
    products = needed[0] + needed[1] + (preactivation is None and activation != "none")
    return products * product(math.prod(dy.shape[:-1]), dy.shape[-1], inner)


def _shardings(
    _: int, dy: torch.Tensor, x: Any, weight: Any, bias: Any, preactivation: Any, activation: str, needed: Wanted
) -> Iterator[Sharding]:
    last = dy.ndim - 1

    def way(outputs: Sequence[Placed], inputs: Sequence[Placed]) -> Sharding:
        return Sharding([o for o, n in zip(outputs, needed, strict=True) if n], (*inputs, None, None))

    for dim in range(last):
        yield way((dim, SUM, SUM), (dim, dim, WHOLE, WHOLE, dim))
    yield way((SUM, 0, 0), (last, WHOLE, 0, 0, last))
    if preactivation is not None or activation == "none":
        yield way((last, 1, WHOLE), (WHOLE, last, 1, WHOLE, WHOLE))


def leaves_idle(dw: torch.Tensor, rows: int) -> bool:
    """Whether tiles of a weight's gradient, each summed over all rows, leave a GPU idle for long."""
    if rows < LONG or dw.device.type == "cpu" or tpu(dw) is not None:
        return False
    cores, (features, inner) = multiprocessors(dw), dw.shape
    turns = [-(-features // tall) * -(-inner // wide) / cores for tall, wide in TILES]
    return max(t / math.ceil(t) for t in turns) < BUSY


def _run(
    launch: Launch,
    dy: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    preactivation: torch.Tensor | None,
    activation: str,
    needed: Wanted,
) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = []
    if not any(needed):
        return gradients
    needs_x, needs_weight, needs_bias = needed
    features = dy.shape[-1]
    dy_rows = as_matrix(dy, features)
    rows = None if x is None else aligned(as_matrix(x, x.shape[-1]), features)
    plain, transposed = (None, None) if weight is None else as_it_lies(weight, dy_rows.shape[0])
    beside = x if weight is None else weight
    across = beside.shape[-1] if beside is not None and (needs_x or needs_weight) else 0
    shares = share_count(dy_rows.shape[0] // SHARE_ROWS, MOST_SHARES)
    sums = dy.new_empty((shares, features), dtype=torch.float32) if needs_bias else None

    if activation == "none":
        dz = aligned(dy_rows, across)
    else:
        dz = room_like(dy_rows, across)
        if preactivation is None:
            given = (rows, plain, bias, dy_rows, dz, BACKWARD[activation], transposed)
            launch(kernels.linear_act_bwd_dz_recomputing, *given)
        elif sums is None:
            z = as_matrix(preactivation, features)
            launch(kernels.linear_act_bwd_dz, dy_rows, z, dz, BACKWARD[activation])
        else:
            z = as_matrix(preactivation, features)
            launch(kernels.linear_act_bwd_dz_sums, dy_rows, z, dz, sums, BACKWARD[activation])
    if needs_x:
        assert weight is not None
        dx = dy.new_empty((*dy.shape[:-1], weight.shape[1]))
        launch(kernels.linear_act_bwd_dx, dz, plain, dx.view(-1, weight.shape[1]), transposed)
        gradients.append(dx)
    if needs_weight:
        assert rows is not None
        dw = gradient_room(dy, rows, weight)
        left, right, room = (dz, rows, dw) if transposed is None else (rows, dz, dw.mT)  # dw.T = x.T @ dz
        if leaves_idle(room, left.shape[0]):
            torch.mm(left.T, right, out=room)
        else:
            launch(kernels.linear_act_bwd_dw, left, right, room)
        gradients.append(dw)
    if sums is not None:
        if activation == "none" or preactivation is None:
            launch(partial_column_sums, dz, sums)
        db = dy.new_empty(features)
        launch(column_sums, sums, None, db, None)
        gradients.append(db)
    return gradients


_dispatch = define(
    Op(
        public=linear_act_backward,
        reference=reference.linear_act_backward,
        fake=_fake,
        check=_check,
        kernels=generated(_run),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=TRAINED,
        lengths=dict.fromkeys(("dy", "x", "preactivation"), slice(0, -1)) | dict.fromkeys(("weight", "bias"), slice(0, 0)),
        autocast={"cuda": "keep", "cpu": "keep"},
        multiplies=True,
        flops=_flops,
        shardings=_shardings,
    )
)


def _forward(
    dispatch: Ready,
    needed: Wanted,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    recompute: bool,
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    z: torch.Tensor | None = None
    if recompute or activation == "none" or activation in OUTPUT_TELLS:
        y: torch.Tensor = dispatch(x, weight, bias, activation, recompute)
        if activation in OUTPUT_TELLS:
            z = y
    else:
        y, z = linear_act_saving(x, weight, bias, activation=activation)
    again = z is None and activation != "none"
    needs_x, needs_weight, _ = needed
    saved = (x if needs_weight or again else None, weight if needs_x or again else None, bias if again else None)
    return y, (*saved, z, activation)


def _backward(saved: tuple[Any, ...], needed: Wanted, dy: torch.Tensor) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = _dispatch(dy, *saved, needed)
    return gradients


GRADIENT = Gradient(("x", "weight", "bias"), _forward, _backward)
"""Saves x, weight and the pre-activation, as PyTorch's own two ops do, or their output for "relu"; without the pre-activation
where it is to be recomputed."""
