"""What an instance asks of any machine: operations and bytes, from its IR and its extents. Knows no target and no config."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Product, collect
from kpt_dsl.space.spans import mean_span

if TYPE_CHECKING:
    from kpt_dsl.extents import Extents
    from kpt_dsl.instance import Instance


@dataclass(frozen=True)
class Work:
    """``flops`` of all products, and ``bytes`` of every tensor read or written once; of one that is only looked up in, of what
    is looked up."""

    flops: float
    bytes: int

    @property
    def intensity(self) -> float:
        """Flops a byte."""
        return self.flops / max(1, self.bytes)


def work(instance: "Instance") -> Work:
    """The work of an instance under the first option of each algorithm choice.

    Products that a loop's bounds skip are not counted, so a causal product counts about half. Bounds that only the run knows
    (a window given as an argument, lengths in a tensor) count as absent.
    """
    facts = collect(instance.lower({}), instance.extents)
    held = {t: _elements(t, instance.extents) for t in facts.kernel.tensors}
    moved = sum(min(n, facts.gathered.get(t.name, n)) * t.dtype.bytes for t, n in held.items())
    return Work(flops=sum(_flops(facts, product) for product in facts.products), bytes=moved)


def _elements(tensor: ir.Tensor, extents: "Extents") -> int:
    """Elements in memory: a dim expanded with stride zero is stored once."""
    steps = zip(tensor.dims, extents.stride(tensor.name), strict=True)
    return math.prod(1 if stride == 0 else extents.dim(dim) for dim, stride in steps)


def _flops(facts: Facts, product: Product) -> float:
    axes = (product.m, product.n, product.k)
    extents = {axis: float(facts.extent(axis)) for axis in axes}
    repeats = 1.0
    scope = product.scope
    while scope:
        loop, scope = facts.loops[scope - 1], facts.outer[scope - 1]
        span = mean_span(loop, facts.variables, facts.dims, {})
        if isinstance(loop.over, ir.Each):
            repeats *= span
        elif loop.tile.axis in extents:
            extents[loop.tile.axis] = span
    for index in facts.kernel.grid:
        if isinstance(index, ir.Each):
            repeats *= facts.dims[index.dim]
    # One tile along two sides counts once: how wide it is, only a config knows.
    sides = [axis for i, axis in enumerate(axes) if axis.tile is None or axis not in axes[:i]]
    return 2.0 * repeats * math.prod(extents[axis] for axis in sides)
