"""How far a sequential loop runs, on average over the programs of a grid: the part of cost that depends on shapes.

Bounds are scalar expressions of the IR. What only the run will know (a scalar argument, a value loaded from a tensor) is left
out of ``min`` and ``max``, which gives the longest loop that the known parts allow. Groups are taken to be of one length. Knows
no target.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
    named, also, bounds = _bounds(loop)
    grouped = {name: t.groups for name, t in loops.items() if isinstance(t, ir.Tile) and t.groups}
    extent = float(dims[loop.over.dim])
    # Of groups the first stands for all, and what other tensors have at theirs and the next one's are ends too.
    lengths = {name: max(1, dims[loops[name].dim] // max(1, dims[groups.dim] - 1)) for name, groups in grouped.items()}
    ends = {(groups.tensor, groups.index): (0.0, float(lengths[name])) for name, groups in grouped.items()}
    of_others = {g.index: max(1.0, extent // max(1, dims[g.dim] - 1)) for g in grouped.values()}
    ends |= {(t, g.index): (0.0, of_others[g.index]) for g in grouped.values() for t in also - {g.tensor}}
    mentioned = sorted(named & loops.keys())
    within = [{**dims, loops[name].dim: lengths[name]} if name in lengths else dims for name in mentioned]
    choices = [_positions(loops[name], extents, blocks, samples) for name, extents in zip(mentioned, within, strict=True)]
    lanes = {name: blocks.get(tile.block, 1) for name, tile in loops.items() if isinstance(tile, ir.Tile)}
    for at in itertools.product(*choices):
        known = _Known(dims, lanes, dict(zip(mentioned, at, strict=True)), ends)
        start, stop = (bound(known) for bound in bounds)
        start = 0.0 if start is None else min(max(0.0, start), extent)
        yield start, max(start, extent if stop is None else min(extent, stop))


def _positions(
    loop: ir.Tile | ir.Each, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int
) -> list[tuple[float, float]]:
    """First index and one past the last of tiles spread evenly along a dim: the same tiles whether the last one is whole."""
    extent, block = dims[loop.dim], blocks.get(loop.block, 1) if isinstance(loop, ir.Tile) else 1
    tiles = max(1, math.ceil(extent / block))
    count = min(samples, tiles)
    starts = ((2 * i + 1) * tiles // (2 * count) * block for i in range(count))
    return [(start, min(start + block, extent)) for start in starts]


class _Known(NamedTuple):
    """What is known of a run: extents, the lanes of each tile, and where tiles lie."""

    dims: Mapping[str, int]
    lanes: Mapping[str, int]
    at: Mapping[str, tuple[float, float]]
    ends: Mapping[tuple[str, str], tuple[float, float]]
    """Of the group that tiles are in, by the tensor that says so and the group's index."""


_Value = Callable[[_Known], float | None]
"""A scalar expression, None where only the run will tell."""


@remembered(1024)
def _bounds(loop: ir.For) -> tuple[set[str], set[str], tuple[_Value, _Value]]:
    """The loop variables that a loop's bounds speak of, the tensors that they read at an index and at the next one, and the
    bounds: read once, for every tiling asks for them."""
    inside = [node for bound in (loop.start, loop.stop) for node in ir.walk(bound)]
    named = {n.tile for n in inside if isinstance(n, ir.Start | ir.Stop)}
    loads = {(n.tensor, n.index) for n in inside if isinstance(n, ir.Load)}
    also = {t for t, (i, *_) in loads if isinstance(i, ir.Binary) and any((t, (at,)) in loads for at in ir.children(i))}
    return named | {n.name for n in inside if isinstance(n, ir.Index)}, also, (_value(loop.start), _value(loop.stop))


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
            return lambda known: known.lanes.get(name)
        case ir.Load(tensor=tensor, index=(ir.Index(name=name),)):
            return lambda known: known.ends.get((tensor, name), (None,))[0]
        case ir.Load(tensor=tensor, index=(ir.Binary(op="add", a=ir.Index(name=name), b=ir.Const(value=1)),)):
            return lambda known: known.ends.get((tensor, name), (None, None))[1]
        case ir.Cast(x=x):
            return _value(x)
        case ir.Unary(op=op) | ir.Binary(op=op) if op in ("max", "min", *_ARITHMETIC):
            return partial(_computed, op, [_value(x) for x in ir.children(node)])
    return lambda _: None


def _computed(op: str, parts: Sequence[_Value], known: _Known) -> float | None:
    values = [value for part in parts if (value := part(known)) is not None]
    if op in ("max", "min"):
        return (max if op == "max" else min)(values) if values else None
    if len(values) < len(parts) or (values[-1] == 0 and op in ("floordiv", "mod")):
        return None
    return _ARITHMETIC[op](*values)


_ARITHMETIC: Mapping[str, Callable[..., float]] = {
    "neg": operator.neg,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
