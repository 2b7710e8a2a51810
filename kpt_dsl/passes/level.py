"""Loops with bounds of their own that begin and end where a tile does: none of their tiles has a lane outside.

Causal attention ends at ``m.stop + ahead``. Where the tile of keys divides the tile of queries, and the numbers of both, it
divides that too, and no lane lies beyond. What divides an expression is the greatest common divisor of what divides its parts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kpt_dsl import ir
from kpt_dsl.ir import Axis, Expr

NOTHING_KNOWN = 1
"""What divides any number."""


def level_loops(kernel: ir.Kernel, extents: Mapping[str, int], blocks: Mapping[str, int]) -> frozenset[Axis]:
    """The axes of the outermost loops that visit whole tiles only, at these extents of dims and blocks of tiles, by name."""
    divisors = _Divisors(kernel, extents, blocks)
    found = set()
    for stmt in kernel.body:
        match stmt:
            case ir.Assign(name=name, value=value) if not value.type.shape:
                divisors.known[name] = divisors.of(value)
            case ir.For(over=over):
                ends = divisors.of(stmt.start), divisors.of(stmt.stop), extents[over.dim]
                if isinstance(over, ir.Tile) and math.gcd(*ends) % blocks[over.name] == 0:
                    found.add(over.axis)
                for inner in ir.statements(stmt.body):
                    if isinstance(inner, ir.Assign):
                        divisors.known.pop(inner.name, None)
    return frozenset(found)


@dataclass
class _Divisors:
    """Numbers that divide scalars whatever these are; 0 is that of zero, which everything divides."""

    kernel: ir.Kernel
    extents: Mapping[str, int]
    blocks: Mapping[str, int]
    known: dict[str, int] = field(default_factory=dict)
    """Of the variables assigned so far."""

    def __post_init__(self) -> None:
        self.grouped = ir.groups(self.kernel)

    def of(self, e: Expr) -> int:
        match e:
            case ir.Const(value=int(value)):
                return abs(value)
            case ir.Size(dim=dim):
                return self.extents[dim]
            case ir.Start(tile=tile) | ir.Stop(tile=tile) if tile in self.grouped:
                return NOTHING_KNOWN
            case ir.Start(tile=tile):
                return self.blocks[tile]
            case ir.Stop(tile=tile):  # the start of the next tile, or the end of the dim
                return math.gcd(self.blocks[tile], *(self.extents[g.dim] for g in self.kernel.grid if g.name == tile))
            case ir.Var(name=name):
                return self.known.get(name, NOTHING_KNOWN)
            case ir.Binary(op="add" | "sub" | "min" | "max", a=a, b=b) | ir.Where(a=a, b=b):
                return math.gcd(self.of(a), self.of(b))
            case ir.Binary(op="mul", a=a, b=b):
                return self.of(a) * self.of(b)
        return NOTHING_KNOWN
