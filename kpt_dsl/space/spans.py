"""How far a sequential loop runs, on average over the programs of a grid: the part of cost that depends on shapes.

Bounds are scalar expressions of the IR. What only the run will know (a scalar argument, a value loaded from a tensor) is left
out of ``min`` and ``max``, which gives the longest loop that the known parts allow. Knows no target.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

from kpt_dsl import ir
from kpt_dsl.same import remembered

Loops = Mapping[str, ir.Tile | ir.Each]
"""The loop variables in scope, by name."""


def mean_span(
    loop: ir.For, loops: Loops, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int = 16
) -> float:
    """Mean number of indices of ``loop.over.dim`` in [start, stop).

    ``loops`` are the loop variables in scope and ``blocks`` the lanes of each block knob; a block without an entry is one lane.
    ``samples``: how many positions of a tile are tried along its dim; a bound is piecewise linear in them, so few are enough.
    """
    return fmean(stop - start for start, stop in _spans(loop, loops, dims, blocks, samples))


def mean_steps(
    loop: ir.For, loops: Loops, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int = 4
) -> float:
    """Mean number of turns that the loop makes."""
    block = blocks.get(loop.tile.block, 1) if isinstance(loop.over, ir.Tile) else 1
    spans = _spans(loop, loops, dims, blocks, samples)
    return fmean([math.ceil(stop / block) - math.floor(start / block) if stop > start else 0 for start, stop in spans])


def _spans(
    loop: ir.For, loops: Loops, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int
) -> Iterator[tuple[float, float]]:
    named, bounds = _bounds(loop)
    mentioned = sorted(named & loops.keys())
    choices = [_positions(loops[name], dims, blocks, samples) for name in mentioned]
    extent = float(dims[loop.over.dim])
    for at in itertools.product(*choices):
        known = _Known(dims, blocks, loops, dict(zip(mentioned, at, strict=True)))
        start, stop = (bound(known) for bound in bounds)
        start = 0.0 if start is None else min(max(0.0, start), extent)
        yield start, max(start, extent if stop is None else min(extent, stop))


def _positions(
    loop: ir.Tile | ir.Each, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int
) -> list[tuple[float, float]]:
    """First index and one past the last of tiles spread evenly along a dim."""
    extent, block = dims[loop.dim], blocks.get(loop.block, 1) if isinstance(loop, ir.Tile) else 1
    count = min(samples, max(1, math.ceil(extent / block)))
    starts = (math.floor((i + 0.5) / count * extent / block) * block for i in range(count))
    return [(start, min(start + block, extent)) for start in starts]


class _Known(NamedTuple):
    """What is known of a run: extents, lanes, and where each tile lies."""

    dims: Mapping[str, int]
    blocks: Mapping[str, int]
    loops: Loops
    at: Mapping[str, tuple[float, float]]


_Value = Callable[[_Known], float | None]
"""A scalar expression, None where only the run will tell."""


@remembered(1024)
def _bounds(loop: ir.For) -> tuple[set[str], tuple[_Value, _Value]]:
    """The loop variables that a loop's bounds speak of, and what these come to: read once, for they are asked of every tiling."""
    inside = [node for bound in (loop.start, loop.stop) for node in ir.walk(bound)]
    named = {n.tile for n in inside if isinstance(n, ir.Start | ir.Stop)}
    return named | {n.name for n in inside if isinstance(n, ir.Index)}, (_value(loop.start), _value(loop.stop))


def _value(node: ir.Expr) -> _Value:
    match node:
        case ir.Const(value=number):
            return lambda _: float(number)
        case ir.Size(dim=dim):
            return lambda known: float(known.dims[dim])
        case ir.Start(tile=name) | ir.Index(name=name):
            return lambda known: known.at[name][0] if name in known.at else None
        case ir.Stop(tile=name):
            return lambda known: known.at[name][1] if name in known.at else None
        case ir.Block(tile=name):
            return lambda known: _lanes(known.loops.get(name), known.blocks)
        case ir.Cast(x=x):
            return _value(x)
        case ir.Unary(op="neg", x=x):
            return _computed(operator.neg, _value(x))
        case ir.Binary(op="max" | "min" as op, a=a, b=b):
            return _extreme(max if op == "max" else min, _value(a), _value(b))
        case ir.Binary(op="floordiv" | "mod" as op, a=a, b=b):
            return _computed(_ARITHMETIC[op], _value(a), _nonzero(_value(b)))
        case ir.Binary(op=op, a=a, b=b) if op in _ARITHMETIC:
            return _computed(_ARITHMETIC[op], _value(a), _value(b))
    return lambda _: None


def _lanes(loop: ir.Tile | ir.Each | None, blocks: Mapping[str, int]) -> float | None:
    return float(blocks.get(loop.block, 1)) if isinstance(loop, ir.Tile) else None


def _computed(operation: Callable[..., float], *parts: _Value) -> _Value:
    def value(known: _Known) -> float | None:
        values = [part(known) for part in parts]
        return None if None in values else operation(*values)

    return value


def _extreme(operation: Callable[[list[float]], float], *parts: _Value) -> _Value:
    def value(known: _Known) -> float | None:
        values = [v for part in parts if (v := part(known)) is not None]
        return operation(values) if values else None

    return value


def _nonzero(part: _Value) -> _Value:
    return lambda known: part(known) or None


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
