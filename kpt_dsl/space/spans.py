"""How far a sequential loop runs, on average over the programs of a grid: the part of cost that depends on shapes.

Bounds are scalar expressions of the IR. What only the run will know (a scalar argument, a value loaded from a tensor) is left
out of ``min`` and ``max``, which gives the longest loop that the known parts allow. Knows no target.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

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
    bounds = (loop.start, loop.stop)
    mentioned = sorted(_mentioned(loop) & loops.keys())
    choices = [_positions(loops[name], dims, blocks, samples) for name in mentioned]
    extent = float(dims[loop.over.dim])
    for at in itertools.product(*choices):
        known = _Known(dims, blocks, loops, dict(zip(mentioned, at, strict=True)))
        start, stop = (known.value(bound) for bound in bounds)
        start = 0.0 if start is None else min(max(0.0, start), extent)
        yield start, max(start, extent if stop is None else min(extent, stop))


@remembered(1024)
def _mentioned(loop: ir.For) -> set[str]:
    """The loop variables that its bounds speak of."""
    inside = [node for bound in (loop.start, loop.stop) for node in ir.walk(bound)]
    return {n.tile for n in inside if isinstance(n, ir.Start | ir.Stop)} | {
        n.name for n in inside if isinstance(n, ir.Index)
    }


def _positions(
    loop: ir.Tile | ir.Each, dims: Mapping[str, int], blocks: Mapping[str, int], samples: int
) -> list[tuple[float, float]]:
    """First index and one past the last of tiles spread evenly along a dim."""
    extent, block = dims[loop.dim], blocks.get(loop.block, 1) if isinstance(loop, ir.Tile) else 1
    count = min(samples, max(1, math.ceil(extent / block)))
    starts = (math.floor((i + 0.5) / count * extent / block) * block for i in range(count))
    return [(start, min(start + block, extent)) for start in starts]


@dataclass(frozen=True)
class _Known:
    """What is known of a run: extents, lanes, and where each tile lies."""

    dims: Mapping[str, int]
    blocks: Mapping[str, int]
    loops: Loops
    at: Mapping[str, tuple[float, float]]

    def value(self, node: ir.Expr) -> float | None:
        """A scalar expression, None where only the run will tell."""
        match node:
            case ir.Const():
                return float(node.value)
            case ir.Size(dim=dim):
                return float(self.dims[dim])
            case ir.Start(tile=tile) if tile in self.at:
                return self.at[tile][0]
            case ir.Stop(tile=tile) if tile in self.at:
                return self.at[tile][1]
            case ir.Index(name=name) if name in self.at:
                return self.at[name][0]
            case ir.Block(tile=tile) if isinstance(loop := self.loops.get(tile), ir.Tile):
                return float(self.blocks.get(loop.block, 1))
            case ir.Cast(x=x):
                return self.value(x)
            case ir.Unary(op="neg", x=x):
                inner = self.value(x)
                return None if inner is None else -inner
            case ir.Binary(op="max" | "min" as op, a=a, b=b):
                values = [v for v in (self.value(a), self.value(b)) if v is not None]
                return None if not values else (max if op == "max" else min)(values)
            case ir.Binary(op=op, a=a, b=b) if op in _ARITHMETIC:
                left, right = self.value(a), self.value(b)
                if left is None or right is None or (right == 0 and op in ("floordiv", "mod")):
                    return None
                return _ARITHMETIC[op](left, right)
        return None


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
