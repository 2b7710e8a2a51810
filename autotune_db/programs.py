"""Single programs of a grid, and few of them, run by NumPy in float64: from the same IR as the launch that they stand for.

Costs the same for any shape. Knows nothing of devices or of what results are compared with.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kpt_dsl import ir
from kpt_dsl.dtypes import i32
from kpt_dsl.emit.numpy import Precision, emit_kernel
from kpt_dsl.extents import Extents
from kpt_dsl.runtime.numpy import load
from kpt_dsl.space import Config

PROGRAMS = 6
"""How many places of a grid are looked at."""

Loop = ir.Each | ir.Tile
Write = tuple[str, Any, Any]
"""An output's name, an index into it, and the values that belong there."""


def places(loops: Sequence[Loop], extents: Extents, config: Config, chance: random.Random) -> list[tuple[int, ...]]:
    """Steps of some loops: the first of all, the last of all, and some between."""
    counts = [_steps(loop, extents, config) for loop in loops]
    wanted = {tuple(0 for _ in counts), tuple(n - 1 for n in counts)}
    while len(wanted) < min(PROGRAMS, math.prod(counts)):
        wanted.add(tuple(chance.randrange(n) for n in counts))
    return sorted(wanted)


def _steps(loop: Loop, extents: Extents, config: Config) -> int:
    """How many steps a loop has; one that goes through tiles of groups has one for each group."""
    if isinstance(loop, ir.Each):
        return extents.dim(loop.dim)
    return extents.dim(loop.groups.dim) - 1 if loop.groups else math.ceil(extents.dim(loop.dim) / int(config[loop.block]))


def reach(loop: Loop, step: int, extents: Extents, config: Config) -> tuple[int, int]:
    """The first index of its dim that one step of a loop covers, and the one after the last."""
    block = int(config[loop.block]) if isinstance(loop, ir.Tile) else 1
    return step * block, min((step + 1) * block, extents.dim(loop.dim))


def at(kernel: ir.Kernel, extents: Extents, config: Config, steps: Mapping[str, int]) -> ir.Kernel:
    """The kernel with some loops of its grid, by name, left at one step: written as constants and loops of one step."""
    fixed = [loop for loop in kernel.grid if loop.name in steps]
    known = {loop.name: ir.scalar(steps[loop.name]) for loop in fixed if isinstance(loop, ir.Each)}
    known |= {loop.groups.index: ir.scalar(steps[loop.name]) for loop in fixed if isinstance(loop, ir.Tile) and loop.groups}
    body = tuple(_fixed(stmt, known) for stmt in kernel.body)
    for loop in reversed(fixed):
        if isinstance(loop, ir.Tile) and loop.groups:
            group, starts = steps[loop.name], loop.groups.tensor
            start, stop = (ir.Load(starts, (ir.scalar(g),), type=ir.Type(i32)) for g in (group, group + 1))
            body = (ir.For(replace(loop, groups=None), start, stop, body),)
        elif isinstance(loop, ir.Tile):
            low, high = reach(loop, steps[loop.name], extents, config)
            body = (ir.For(loop, ir.scalar(low), ir.scalar(high), body),)
    return replace(kernel, grid=tuple(loop for loop in kernel.grid if loop not in fixed), body=body)


def written(
    kernel: ir.Kernel, extents: Extents, config: Config, known: Mapping[str, Any], precision: Precision
) -> list[Write]:
    """Everything that a kernel stores, or adds, in order. ``known``: its inputs and scalars."""
    source = emit_kernel(kernel, config, precision)
    outputs = {t.name: _Recorder(extents.shape(t.dims)) for t in kernel.tensors if t.role == "out"}
    load(source)(*({**known, **outputs}[name] for name in source.abi))
    return [(name, index, value) for name, output in outputs.items() for index, value in output.writes]


class _Recorder:
    """Stands for an output: keeps what is stored where, so that a large output need not exist twice."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.writes: list[tuple[Any, Any]] = []

    def __getitem__(self, index: Any) -> float:
        """What an addition finds: nothing yet, so that what is then kept is what it adds."""
        return 0.0

    def __setitem__(self, index: Any, value: Any) -> None:
        self.writes.append((index, value))

    def __array_ufunc__(self, ufunc: Any, method: str, _: Any, index: Any, value: Any) -> None:
        """``np.add.at``, by which places are added to that indices tell."""
        self.writes.append((index, value))


def _fixed(stmt: ir.Stmt, known: Mapping[str, ir.Const]) -> ir.Stmt:
    match stmt:
        case ir.Assign():
            return replace(stmt, value=_with(stmt.value, known))
        case ir.Store():
            index = tuple(_with(i, known) if isinstance(i, ir.Expr) else i for i in stmt.index)
            return replace(stmt, index=index, value=_with(stmt.value, known))
        case ir.For():
            body = tuple(_fixed(inner, known) for inner in stmt.body)
            return replace(stmt, start=_with(stmt.start, known), stop=_with(stmt.stop, known), body=body)
    raise AssertionError(stmt)


def _with(node: ir.Expr, known: Mapping[str, ir.Const]) -> ir.Expr:
    if isinstance(node, ir.Index):
        return known.get(node.name, node)
    return ir.with_children(node, tuple(_with(child, known) for child in ir.children(node)))
