"""A kernel's tiles under a config on a GPU: their lanes, the threads that hold them, and how deep loops are pipelined."""

from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Product, Scope
from kpt_dsl.space.sized import Sized, of_tiles, up_to_power

MIN_PRODUCT_SIDE = 16
"""Least lanes along an axis of a product; along k of 8-bit operands twice as many."""


@dataclass(frozen=True, slots=True)
class InScope:
    """What the tiles of one scope come to."""

    work: int
    """Of its arithmetic, in instructions on one element."""
    made: int
    """Elements of the largest tile that it makes."""
    carried: int
    """Elements of the tiles that its loop carries."""
    alive: int
    """32-bit words of the tiles that live across one of its reductions, where it has no products."""
    moved: int
    """Bytes that are read and written, but for what all programs read alike: that stays in the core's own cache."""
    again: int
    """Of the tiles that a streaming loop reads more than once a step, the elements."""
    again_bytes: int
    row_bytes: int
    """Along k, of the longest operand of its products."""


@dataclass(frozen=True)
class GpuTiles(Sized):
    """A kernel's tiles, and who works on them."""

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

    @of_tiles
    def largest(self) -> int:
        """Elements of the largest tile."""
        return max((self.count(shape) for shape in {kind.shape for kind in self.facts.tile_types}), default=1)

    @of_tiles
    def scopes(self) -> tuple[InScope, ...]:
        """What the tiles of each scope come to."""
        return tuple(map(self._in_scope, range(len(self.facts.inside))))

    def _in_scope(self, scope: Scope) -> InScope:
        facts, inside = self.facts, self.facts.inside[scope]
        counts = [self.count(a.axes) for a in inside.arithmetic]
        alive = () if inside.products else facts.alive[scope]
        return InScope(
            work=sum(count * a.instructions for count, a in zip(counts, inside.arithmetic, strict=True)),
            made=max(counts, default=0),
            carried=sum(self.count(kind.shape) for kind in (facts.carried[scope - 1] if scope else ())),
            alive=max((sum(self.count(t.shape) * t.dtype.bytes for t in types) // 4 for types in alive), default=0),
            moved=sum(map(self.bytes, inside.apart)),
            again=sum(self.count(load.axes) for load in inside.again),
            again_bytes=sum(map(self.bytes, inside.again)),
            row_bytes=max((self.lanes(p.k) * p.dtype.bytes for p in inside.products), default=1),
        )

    @cached_property
    def ahead_bytes(self) -> int:
        """Bytes of the tiles that a streaming loop has on the way for its next steps."""
        streams = (inside for inside in self.facts.inside if inside.streams)
        return (self.stages - 1) * sum(self.bytes(load) for inside in streams for load in inside.loads)


def least_lanes(facts: Facts, axis: ir.Axis) -> int:
    """The least lanes that products allow an axis to have."""
    least = 1
    for product in facts.products:
        if axis in (product.m, product.n):
            least = max(least, MIN_PRODUCT_SIDE)
        if axis == product.k:
            least = max(least, MIN_PRODUCT_SIDE * (2 if product.dtype.bits == 8 else 1))
    return least
