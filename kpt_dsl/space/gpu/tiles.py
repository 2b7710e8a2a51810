"""A kernel's tiles under a config on a GPU: their lanes, the threads that hold them, and how deep loops are pipelined."""

from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Product
from kpt_dsl.space.sized import Sized, up_to_power

MIN_PRODUCT_SIDE = 16
"""Least lanes along an axis of a product; along k of 8-bit operands twice as many."""


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
