"""Whether a config computes what the kernel says: some programs of the very launch, against float64.

The programs of a grid are independent, so a few of them, first and last and some between, are run by NumPy from the same IR in
float64, on the same arguments, and their part of the outputs is compared. That costs the same for any shape. A config is never
compared with another config.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kpt_dsl import ir
from kpt_dsl.emit.numpy import Precision, emit_kernel
from kpt_dsl.problem import Problem
from kpt_dsl.runtime.numpy import as_numpy, load
from kpt_dsl.space import Config

PROGRAMS = 6
"""How many programs of a grid are compared."""

ROUNDINGS = 4.0
"""Roundings of the coarsest type on the way to an output that may add up, in units of the largest output."""

CONDITION = 8.0
"""Where a kernel amplifies roundings (a quotient of sums that cancel), NumPy in the kernel's own types shows by how much; a
device, which sums in another order, may be off by so many times that."""

_UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-9, "f8e4m3": 2.0**-4, "f8e5m2": 2.0**-3}

FP8_PRODUCT_ROUNDOFF = 2.0**-12
"""Hopper adds fp8 products with 14 bits or so unless asked otherwise (DeepSeek-V3 report, 3.3.2), as cuBLASLt does."""


def wrong(problem: Problem, config: Config, arguments: Mapping[str, Any], seed: int) -> str:
    """What is wrong with the outputs in ``arguments`` (torch tensors) that a launch has written; "" for nothing."""
    kernel = problem.lower(config)
    # A kernel may read what it writes nowhere but in its outputs, so inputs are still what the launch saw.
    inputs = {t.name: as_numpy(t.name, arguments[t.name].cpu()) for t in kernel.tensors if t.role == "in"}
    known = inputs | {scalar.name: arguments[scalar.name] for scalar in kernel.scalars}
    allowed = _allowed(kernel, problem)
    for position in _positions(kernel, problem, config, random.Random(seed)):
        one = _at(kernel, problem, config, position)
        exact = _written(one, problem, config, known, "f64")
        if not any(_difference(arguments[name][index], value, allowed) for name, index, value in exact):
            continue
        typed = _written(one, problem, config, known, "typed")
        for (name, index, value), (_, _, rough) in zip(exact, typed, strict=True):
            spread = CONDITION * _error(rough, value)
            if difference := _difference(arguments[name][index], value, allowed, spread):
                return f"{name} at {_shown(index)}: {difference}"
    return ""


# ------------------------------------------------------------------ which programs
def _positions(kernel: ir.Kernel, problem: Problem, config: Config, chance: random.Random) -> list[tuple[int, ...]]:
    """Positions in the grid: the corners' first and last, and some between."""
    counts = [
        math.ceil(problem.dim(loop.dim) / int(config[loop.block]))
        if isinstance(loop, ir.Tile)
        else problem.dim(loop.dim)
        for loop in kernel.grid
    ]
    wanted = {tuple(0 for _ in counts), tuple(n - 1 for n in counts)}
    while len(wanted) < min(PROGRAMS, math.prod(counts)):
        wanted.add(tuple(chance.randrange(n) for n in counts))
    return sorted(wanted)


# ------------------------------------------------------------------ one program in float64
class _Recorder:
    """Stands for an output: keeps what is stored where, so that a large output need not exist twice."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.writes: list[tuple[Any, Any]] = []

    def __setitem__(self, index: Any, value: Any) -> None:
        self.writes.append((index, value))


def _written(
    kernel: ir.Kernel, problem: Problem, config: Config, known: Mapping[str, Any], precision: Precision
) -> list[tuple[str, Any, Any]]:
    """(output, index, values) of everything that a kernel stores, in order."""
    source = emit_kernel(kernel, config, precision)
    outputs = {t.name: _Recorder(problem.shape(t.name)) for t in kernel.tensors if t.role == "out"}
    load(source)(*({**known, **outputs}[name] for name in source.abi))
    return [(name, index, value) for name, output in outputs.items() for index, value in output.writes]


def _at(kernel: ir.Kernel, problem: Problem, config: Config, position: tuple[int, ...]) -> ir.Kernel:
    """The kernel without its grid: one position of it, written as constants and loops of one step."""
    at = {
        loop.name: ir.scalar(i) for loop, i in zip(kernel.grid, position, strict=True) if isinstance(loop, ir.GridIndex)
    }
    body = tuple(_fixed(stmt, at) for stmt in kernel.body)
    for loop, i in zip(reversed(kernel.grid), reversed(position), strict=True):
        if isinstance(loop, ir.Tile):
            block = int(config[loop.block])
            stop = min((i + 1) * block, problem.dim(loop.dim))
            body = (ir.For(loop, ir.scalar(i * block), ir.scalar(stop), body),)
    return replace(kernel, grid=(), body=body)


def _fixed(stmt: ir.Stmt, at: Mapping[str, ir.Const]) -> ir.Stmt:
    match stmt:
        case ir.Assign():
            return replace(stmt, value=_with(stmt.value, at))
        case ir.Store():
            index = tuple(_with(i, at) if isinstance(i, ir.Expr) else i for i in stmt.index)
            return replace(stmt, index=index, value=_with(stmt.value, at))
        case ir.For():
            body = tuple(_fixed(inner, at) for inner in stmt.body)
            return replace(stmt, start=_with(stmt.start, at), stop=_with(stmt.stop, at), body=body)
    raise AssertionError(stmt)


def _with(node: ir.Expr, at: Mapping[str, ir.Const]) -> ir.Expr:
    if isinstance(node, ir.Index):
        return at[node.name]
    return ir.with_children(node, tuple(_with(child, at) for child in ir.children(node)))


# ------------------------------------------------------------------ comparing
def _allowed(kernel: ir.Kernel, problem: Problem) -> float:
    """Largest error in units of the largest output: roundings to the coarsest type that is met on the way, and sums in f32."""
    met = {t.dtype.name for t in kernel.tensors if t.role == "out" and t.dtype.is_float} | {"f32"}
    products = 0.0
    for node in ir.every_expr(kernel.body):
        if isinstance(node, ir.Cast) and node.type.dtype.is_float:
            met.add(node.type.dtype.name)
        if isinstance(node, ir.Dot) and node.a.type.dtype.is_fp8:
            products = FP8_PRODUCT_ROUNDOFF
    coarsest = max(_UNIT_ROUNDOFF[name] for name in met)
    length = max((n for _, n in problem.dims), default=1)
    return ROUNDINGS * (coarsest + products + math.sqrt(length) * _UNIT_ROUNDOFF["f32"])


def _error(rough: Any, exact: Any) -> float:
    """Largest difference of two results where both are finite."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        difference = np.abs(np.asarray(rough, dtype=np.float64) - np.asarray(exact, dtype=np.float64))
    return float(np.max(difference, where=np.isfinite(difference), initial=0.0))


def _difference(got: Any, expected: Any, allowed: float, spread: float = 0.0) -> str:
    """How a part of an output differs from float64, in words; "" where it does not.

    Allowed are ``allowed`` in units of the largest output, and ``spread``.
    """
    import numpy as np

    want = np.asarray(expected)
    if not np.issubdtype(want.dtype, np.floating):
        have = got.cpu().numpy()
        return "" if np.array_equal(have, want) else f"{int((have != want).sum())} of {want.size} integers differ"
    have = got.double().cpu().numpy()
    want = np.broadcast_to(want.astype(np.float64), have.shape)
    finite = np.isfinite(want)
    if not np.array_equal(have[~finite], want[~finite], equal_nan=True):
        return "NaN or infinity is not where float64 has it"
    if not np.isfinite(have[finite]).all():
        return "NaN or infinity where float64 is finite"
    if not finite.any():
        return ""
    error, largest = float(np.abs(have - want)[finite].max()), float(np.abs(want[finite]).max())
    bound = allowed * largest + spread
    return "" if error <= bound else f"error {error:.3g} against float64, allowed are {bound:.3g}"


def _shown(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join(
        str(p) if not isinstance(p, slice) else ":" if p == slice(None) else f"{p.start}:{p.stop}" for p in parts
    )
