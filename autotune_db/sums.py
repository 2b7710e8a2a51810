"""What several programs add up: a part of an output, and all that any program of the grid adds to it, in float64.

Where a loop's tile or index is an index of the output, one step of the loop is looked at: other steps add elsewhere. The other
loops of the grid run in full, in large tiles, since how a kernel is tiled does not change what it computes. So attention's
gradient of a few queries takes all keys, and no other queries.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autotune_db.programs import Loop, Write, at, places, reach, written
from kpt_dsl import ir
from kpt_dsl.emit.numpy import Precision
from kpt_dsl.extents import Extents
from kpt_dsl.passes import fold
from kpt_dsl.space import Config

AT_ONCE = 1024
"""Elements of a tile of those loops that run in full: few steps in Python, and megabytes of float64."""

Bounds = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A part of an output, from one index of each dim up to another, and the kernel that adds to it and to nothing beside."""

    tensor: str
    bounds: tuple[Bounds, ...]
    kernel: ir.Kernel
    config: Config

    def added(self, extents: Extents, known: Mapping[str, Any], precision: Precision) -> list[Write]:
        """The sum of what is added to this part."""
        import numpy as np

        total = np.zeros([stop - start for start, stop in self.bounds])
        for name, index, value in written(self.kernel, extents, self.config, known, precision):
            if name == self.tensor:
                every = index if isinstance(index, tuple) else (index,)
                where = tuple(map(_within, every, self.bounds))
                if any(isinstance(i, np.ndarray) for i in every):  # of which some may be equal
                    np.add.at(total, where, value)
                else:
                    total[where] += value
        return [(self.tensor, tuple(slice(*bounds) for bounds in self.bounds), total)]


def parts(
    kernel: ir.Kernel, tensor: str, extents: Extents, config: Config, chance: random.Random
) -> Iterator[Part]:
    """Some parts of an output that is added to."""
    along = _along(kernel, tensor)
    along = tuple(None if isinstance(loop, ir.Tile) and loop.groups else loop for loop in along)
    loops = {loop.name: loop for loop in along if loop is not None}
    free = [loop for loop in kernel.grid if isinstance(loop, ir.Tile) and loop.name not in loops]
    large = config | {loop.block: max(AT_ONCE, int(config[loop.block])) for loop in free}
    for place in places(tuple(loops.values()), extents, config, chance):
        steps = dict(zip(loops, place, strict=True))
        inside = {name: reach(loops[name], step, extents, config) for name, step in steps.items()}
        whole = ((0, extent) for extent in extents.shape(kernel.tensor(tensor).dims))
        bounds = tuple(b if loop is None else inside[loop.name] for loop, b in zip(along, whole, strict=True))
        one = at(kernel, extents, config, steps)
        yield Part(tensor, bounds, replace(one, body=_cut(one.body, inside)), large)


def _along(kernel: ir.Kernel, tensor: str) -> tuple[Loop | None, ...]:
    """For each dim of an output the loop whose steps are parts of it; None where every step may add anywhere."""
    stores = [s for s in ir.statements(kernel.body) if isinstance(s, ir.Store) and s.tensor == tensor]
    loops: dict[str, Loop] = {loop.name: loop for loop in kernel.grid}
    inner = (s for s in ir.statements(kernel.body) if isinstance(s, ir.For))
    loops |= {loop.over.name: loop.over for loop in inner if not loop.share and not _carries(loop, tensor)}
    return tuple(_same(set(indices), loops) for indices in zip(*(store.index for store in stores), strict=True))


def _same(indices: set[ir.Axis | ir.Expr], loops: Mapping[str, Loop]) -> Loop | None:
    """The loop that these indices of several stores are the steps of, if they are the same."""
    index = indices.pop()
    if indices:
        return None
    if isinstance(index, ir.Axis):
        return None if index.tile is None else loops.get(index.tile)
    return loops.get(index.name) if isinstance(index, ir.Index) else None


def _carries(loop: ir.For, tensor: str) -> bool:
    """Whether what a loop adds to an output depends on its earlier steps."""
    read: set[str] = set()
    while True:
        before = len(read)
        for stmt in ir.statements(loop.body):
            if _counts(stmt, tensor, read):
                read |= {e.name for top in ir.expressions(stmt) for e in ir.walk(top) if isinstance(e, ir.Var)}
        if len(read) == before:
            return not read.isdisjoint(loop.carried)


def _counts(stmt: ir.Stmt, tensor: str, read: set[str]) -> bool:
    """Whether what is added to an output may depend on a statement, given which variables are read for it."""
    match stmt:
        case ir.Assign(name=name):
            return name in read
        case ir.Store():
            return stmt.tensor == tensor
    return True  # the bounds of a loop


def _cut(body: tuple[ir.Stmt, ...], inside: Mapping[str, Bounds]) -> tuple[ir.Stmt, ...]:
    """Statements whose loops, those named, keep within bounds."""
    return tuple(_cut_loop(stmt, inside) if isinstance(stmt, ir.For) else stmt for stmt in body)


def _cut_loop(loop: ir.For, inside: Mapping[str, Bounds]) -> ir.For:
    body = _cut(loop.body, inside)
    if loop.over.name not in inside:
        return replace(loop, body=body)
    start, stop = map(ir.scalar, inside[loop.over.name])
    return replace(loop, start=fold.largest(loop.start, start), stop=fold.smallest(loop.stop, stop), body=body)


def _within(index: Any, bounds: Bounds) -> Any:
    """An index of the whole output as one of the part."""
    if not isinstance(index, slice):
        return index - bounds[0]
    return index if index == slice(None) else slice(index.start - bounds[0], index.stop - bounds[0])
