"""What layer norm and RMS norm, and their gradients, have in common: checks, and how sums over rows are shared out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch
from kpt.ops.column_sums import column_sums, partial_column_sums, share_count
from kpt.ops.devices import multiprocessors, tpu
from kpt.ops.dtypes import FLOATS
from kpt.ops.registry import SUM, Placed, Sharding

HELD_BYTES = 32 * 1024
"""Longest row whose gradients one program makes while the sums of its share stay in registers beside it: 16384 elements in half
precision take all registers of a multiprocessor, in 8 warps, without a spill (sm_80, 90, 120; compiled)."""

HELD_COLUMNS, MOST_PROGRAMS = 4096, 2
"""Columns of the rows that the programs of one multiprocessor hold together, and how many programs it has at most. On an H100
those many and twice as many took the same time, 1024 and 4096 columns wide, and fewer partial sums are added up sooner: layer
norm backward 32768 x 1024 took 84.0 us with two programs and 85.2 with four, 8192 x 4096 85.2 with one and 87.0 with two."""

TILE_COLUMNS, TILE_PROGRAMS = 512, 8
"""Columns of a tile, as a rule, and tiles at work on a multiprocessor, where no row is held."""

MOST_SHARES = 1024
"""Most partial sums of a column that one program adds at once."""

ROWS: Placed = 0
"""Stands for a dim of the rows where it is said how tensors are dealt out: one way a dim."""

CPU_SHARES, CPU_ROWS = 3, 16
"""Shares on a CPU, for its interpreters: few, of that many rows or more, so that each has a tile on every backend."""

TPU_ROWS = 16
"""Rows of a share on a TPU, at least: a tile in half precision. Its cores, one or two, are dealt as many as multiprocessors."""


def as_shape(normalized_shape: Any) -> Any:
    """A sequence as a tuple, which can be remembered; what is no sequence is left for ``check_norm`` to refuse."""
    if type(normalized_shape) is tuple:  # asking whether it is a sequence takes longer than all else here
        return normalized_shape
    return tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else normalized_shape


def check_norm(op: str, x: Any, normalized_shape: Any, any_dtype: bool = False, **parameters: Any) -> None:
    """Raises InputError unless the trailing dims of x are ``normalized_shape`` and the parameters have that shape.

    Parameters have the dtype of x, or are float32 beside half-precision x; or any floating one, where PyTorch takes it.
    """
    checks.tensor(op, "input", x)
    checks.dtype(op, "input", x.dtype, FLOATS)
    if not isinstance(normalized_shape, Sequence) or isinstance(normalized_shape, str) or not normalized_shape:
        checks.reject(
            op, "normalized_shape", repr(normalized_shape), "a sequence of one or more extents, such as (768,)"
        )
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in normalized_shape):
        checks.reject(op, "normalized_shape", repr(normalized_shape), "a sequence of whole numbers, such as (768,)")
    if tuple(x.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        checks.reject(
            op, "input", checks.shape_of(x), f"a shape that ends with normalized_shape {tuple(normalized_shape)}"
        )
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        checks.shape(op, name, parameter, normalized_shape, "normalized_shape")
        accepted = (x.dtype, torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else (x.dtype,)
        checks.dtype(op, name, parameter.dtype, FLOATS if any_dtype else accepted)
        checks.same_device(op, "input", x, **{name: parameter})


def check_norm_backward(
    op: str,
    dy: Any,
    x: Any,
    normalized_shape: Any,
    needed: Any,
    inputs: Sequence[str],
    added: Any,
    any_dtype: bool = False,
    **parameters: Any,
) -> None:
    """Raises InputError unless ``check_norm`` passes, dy and what is ``added`` are like x, and ``needed`` has a bool for each
    of the ``inputs``.

    The gradient of a parameter is needed only where there is the parameter.
    """
    check_norm(op, x, normalized_shape, any_dtype, **parameters)
    for name, like_x in (("dy", dy), ("added", added)):
        if like_x is not None or name == "dy":
            checks.shape(op, name, like_x, x.shape, "the shape of input")
            checks.same_dtype(op, "input", x, **{name: like_x})
            checks.same_device(op, "input", x, **{name: like_x})
    if not isinstance(needed, Sequence) or len(needed) != len(inputs) or not all(isinstance(n, bool) for n in needed):
        checks.reject(op, "needed", repr(needed), f"{len(inputs)} bools, for {', '.join(inputs)}")
    for name, wanted in zip(inputs[1:], needed[1:], strict=True):
        if wanted and parameters[name] is None:
            checks.reject(op, name, "None", f"a tensor, as the gradient of {name} is needed")


def check_sum(op: str, x: Any, residual: Any) -> None:
    """Raises InputError unless what is added is like x."""
    checks.shape(op, "residual", residual, x.shape, "the shape of input")
    checks.same_dtype(op, "input", x, residual=residual)
    checks.same_device(op, "input", x, residual=residual)


def gradients_of_sum(
    needed: Sequence[bool],
    dy: torch.Tensor | None,
    dtotal: torch.Tensor | None,
    gradients: Callable[[torch.Tensor, Sequence[bool]], list[torch.Tensor]],
) -> Sequence[torch.Tensor | None]:
    """The needed gradients of input, residual and parameters. ``gradients`` gives those needed of their sum and the parameters
    for ``dy``; the sum's is that of both, as it is of what PyTorch adds. Parameters of a norm that nothing depends on have
    none: zeros would have an optimizer decay them."""
    needs_x, needs_residual, *of_parameters = needed
    if dy is None:
        return [dtotal] * (needs_x + needs_residual) + [None] * sum(of_parameters)
    needs_sum = needs_x or needs_residual
    found = gradients(dy, (needs_sum, *of_parameters))
    return found[:needs_sum] * (needs_x + needs_residual) + found[needs_sum:]


def shardings(
    x: torch.Tensor, normalized_shape: Sequence[int], outputs: Sequence[Placed], inputs: Sequence[Placed]
) -> Iterator[Sharding]:
    """Of a norm: the dims of its rows, in the place of each ``ROWS``."""
    for dim in range(x.ndim - len(normalized_shape)):
        yield Sharding(*[[dim if p == ROWS else p for p in placed] for placed in (outputs, inputs)])


def backward_shardings(
    x: torch.Tensor, normalized_shape: Sequence[int], needed: Sequence[bool], inputs: Sequence[Placed]
) -> Iterator[Sharding]:
    """Of a norm's gradients: its rows; what the rows of a process give to a parameter's is a part of the sum."""
    outputs = [placed for placed, n in zip((ROWS, SUM, SUM), needed, strict=False) if n]
    return shardings(x, normalized_shape, outputs, inputs)


def is_held(rows: torch.Tensor) -> bool:
    """Whether a program can hold a row of this (rows, columns) matrix beside the sums of its share."""
    return rows.shape[1] * rows.element_size() <= HELD_BYTES


def shares(rows: torch.Tensor, held: bool) -> int:
    """How many shares the rows of a (rows, columns) matrix are dealt out in: a program each if rows are held, else several."""
    count, columns = rows.shape
    if rows.device.type == "cpu":
        return share_count(count // CPU_ROWS, CPU_SHARES)
    cores = multiprocessors(rows)
    programs = cores * TILE_PROGRAMS * TILE_COLUMNS // columns
    if held:
        programs = cores * max(1, min(MOST_PROGRAMS, HELD_COLUMNS // columns))
    return share_count(count if tpu(rows) is None else count // TPU_ROWS, max(1, min(programs, MOST_SHARES)))


def partial_sums(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Room for the float32 sums of the columns of a (rows, columns) matrix over ``count`` shares of its rows."""
    return rows.new_empty((count, rows.shape[1]), dtype=torch.float32)


def launch_column_sums(
    launch: Launch, partial: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], shape: Sequence[int]
) -> list[torch.Tensor]:
    """The sums of one or two matrices of partial sums, each of the dtype of its parameter and the normalised shape."""
    sums = [parameter.new_empty(shape) for parameter in parameters]
    flat = [s.view(-1) for s in sums]
    launch(
        column_sums, partial[0], partial[1] if len(partial) > 1 else None, flat[0], flat[1] if len(flat) > 1 else None
    )
    return sums


def launch_bias_sums(
    launch: Launch, slopes: torch.Tensor, bias: torch.Tensor, shape: Sequence[int]
) -> list[torch.Tensor]:
    """The gradient of a bias alone: the sums of the columns of dy."""
    partial = partial_sums(slopes, shares(slopes, held=False))
    launch(partial_column_sums, slopes, partial)
    return launch_column_sums(launch, [partial], [bias], shape)
