"""A kernel's tiles under a config on a GPU: their lanes, the threads that hold them, and how deep loops are pipelined."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Product, Scope
from kpt_dsl.space.sized import Sized, up_to_power

MIN_PRODUCT_SIDE = 16
"""Least lanes along an axis of a product; along k of 8-bit operands twice as many."""

ASYNC_ROWS = 64
"""Fewest rows of a product that any matrix unit works on by itself; with 64, sm_100 does so at half its speed."""


class InScope(NamedTuple):
    """What the tiles of one scope come to."""

    work: int
    """Of its arithmetic, in instructions on one element."""
    made: int
    """Elements of the largest tile that it makes."""
    carried: int
    """Elements of the tiles that its loop carries."""
    alive: int
    """32-bit words of the tiles that live across one of its reductions."""
    moved: int
    """Bytes that are read and written, but for what all programs read alike: that stays in the core's own cache."""


@dataclass(frozen=True)
class GpuTiles(Sized):
    """A kernel's tiles, and who works on them."""

    OF_TILES = (*Sized.OF_TILES, "largest", "scopes")

    def whole(self, axis: ir.Axis) -> int:
        return max(up_to_power(max(1, self.facts.extent(axis))), least_lanes(self.facts, axis))

    @property
    def warps(self) -> int:
        return int(self.config["num_warps"])

    @property
    def stages(self) -> int:
        return int(self.config.get("num_stages", 1))

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * self.target.warp_lanes

    def is_widened(self, product: Product) -> bool:
        """Whether operands are widened before they are multiplied, for the matrix unit does not take them as they are."""
        return self.target.matrix_dtype(product.dtype.name) not in (None, product.dtype.name)

    def is_async(self, product: Product) -> bool:
        """Whether a product is issued ahead and reads its operands from shared memory meanwhile."""
        target = self.target
        large = self.lanes(product.m) >= min(target.mma_rows, ASYNC_ROWS) and self.warps >= target.mma_warps
        return target.async_products and large and target.matrix_dtype(product.dtype.name) == product.dtype.name

    @cached_property
    def largest(self) -> int:
        """Elements of the largest tile."""
        return max((self.count(shape) for shape in {kind.shape for kind in self.facts.tile_types}), default=1)

    @cached_property
    def scopes(self) -> tuple[InScope, ...]:
        """What the tiles of each scope come to."""
        return tuple(map(self._in_scope, range(len(self.facts.loops) + 1)))

    def _in_scope(self, scope: Scope) -> InScope:
        facts = self.facts
        made = [(self.count(a.axes), a.instructions) for a in facts.arithmetic if a.scope == scope]
        carried = sum(self.count(kind.shape) for kind in (facts.carried[scope - 1] if scope else ()))
        alive = [sum(self.count(kind.shape) * kind.dtype.bytes for kind in kinds) // 4 for kinds in facts.alive[scope]]
        accesses = [a for a in (*facts.loads, *facts.stores) if a.scope == scope and not facts.is_common(a)]
        work, largest = sum(count * each for count, each in made), max((count for count, _ in made), default=0)
        return InScope(work, largest, carried, max(alive, default=0), sum(map(self.bytes, accesses)))

    @cached_property
    def ahead_bytes(self) -> int:
        """Bytes of the tiles that a streaming loop has on the way for its next steps."""
        facts = self.facts
        return (self.stages - 1) * sum(self.bytes(load) for load in facts.loads if facts.shared_out(load.scope))


def least_lanes(facts: Facts, axis: ir.Axis) -> int:
    """The least lanes that products allow an axis to have."""
    least = 1
    for product in facts.products:
        if axis in (product.m, product.n):
            least = max(least, MIN_PRODUCT_SIDE)
        if axis == product.k:
            least = max(least, MIN_PRODUCT_SIDE * (2 if product.dtype.bits == 8 else 1))
    return least
