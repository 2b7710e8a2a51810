"""What a config asks of a TPU: padded tiles, grid steps, vector memory."""

import math
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.facts import Access, Axes, Facts, Product
from kpt_dsl.space.sized import Sized
from kpt_dsl.targets import Target

WORD_BYTES = 4
"""Of a lane of a vector register."""


@dataclass(frozen=True)
class TpuSizes(Sized):
    """A kernel's sizes under a config, on a TPU: registers are ``sublanes`` by ``lanes`` words, so tiles are padded to them."""

    def whole(self, axis: ir.Axis) -> int:
        return max(1, self.facts.extent(axis))

    @cached_property
    def visits(self) -> tuple[float, ...]:
        """Grid steps of each loop, those included that a bound makes idle."""
        return tuple(self.most_steps(loop) / self.unroll for loop in self.facts.loops) or (1,)

    @cached_property
    def unroll(self) -> int:
        """How many tiles of the only loop a step goes through."""
        knobs = [name for name in self.config if name.startswith("unroll_")]
        return int(self.config[knobs[0]]) if knobs else 1

    def padded(self, axes: Axes, rows: int = 0) -> int:
        """Elements of a tile in registers; ``rows`` is what its second last side is a multiple of, by default the sublanes."""
        sides = [self.lanes(axis) for axis in axes]
        if len(sides) < 2:  # one axis lies along sublanes or lanes; the other side is a whole register's
            along_lanes = not axes or block_unit(self.facts, self.target, axes[0]) == self.target.lanes
            sides = [1, *(sides or [1])] if along_lanes else [*sides, 1]
        *outer, height, width = sides
        return math.prod(outer) * _up(height, rows or self.target.sublanes) * _up(width or 1, self.target.lanes)

    def block_bytes(self, access: Access) -> int:
        """Of a block in memory; narrow elements are packed, several rows to a sublane. One along a single axis is a row, or,
        where it is too short for that, a column that takes a row's bytes for each element."""
        size, axes = access.tensor.dtype.bytes, access.block
        length = self.lanes(axes[0]) if len(axes) == 1 else 0
        if length and (length % self.target.lanes == 0 or length >= self.facts.extent(axes[0])):
            return _up(length, self.target.lanes) * size
        return self.padded(access.block, self.target.sublanes * max(1, WORD_BYTES // size)) * size

    def flops(self, product: Product) -> int:
        """Operations of a product on a square matrix unit that works on whole squares."""
        columns, depth = (_up(self.lanes(axis), self.target.mxu) for axis in (product.n, product.k))
        return 2 * _up(self.lanes(product.m), self.target.sublanes) * columns * depth

    @cached_property
    def vmem_bytes(self) -> int:
        """Blocks twice, for one is copied while the other is used; carried values; and the two largest values of a step."""
        accesses = (*self.facts.loads, *self.facts.stores)
        blocks = {(a.tensor.name, a.block, a.parts): self.block_bytes(a) * (self.unroll if a.scope else 1) for a in accesses}
        carried = max((sum(self.padded(t.shape) for t in types) for types in self.facts.carried), default=0)
        made = {a.axes for a in self.facts.arithmetic} | {(p.m, p.n) for p in self.facts.products if not p.carried}
        made |= {(*a.looked_up, *(axis for axis in a.block if axis not in a.axes)) for a in self.facts.loads if a.places}
        sizes = sorted(map(self.padded, made))
        values = sum(sizes[-2:]) + (self.unroll - 1) * sum(sizes[-1:])
        return 2 * sum(blocks.values()) + WORD_BYTES * (carried + values)


def block_unit(facts: Facts, target: Target, axis: ir.Axis) -> int:
    """What a block along an axis is a multiple of: lanes where it is the last side of some tile, sublanes otherwise."""
    tiles = [access.block for access in (*facts.loads, *facts.stores) if axis in access.block]
    last = any(axes[-1] == axis for axes in tiles if len(axes) > 1)
    alone = all(len(axes) == 1 for axes in tiles)
    return target.lanes if last or alone else target.sublanes


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
