"""What a warp-specialised config asks of a chip: registers of the threads that multiply, shared memory of a whole program."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.config import Value
from kpt_dsl.space.facts import Access, Facts
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.targets import Target

PRODUCER_REGISTERS = 24
PRODUCER_THREADS = 128
"""Warps come in groups of four, so that registers are set aside for a whole one."""
CONSUMER_WARPS, CONSUMER_THREADS = 4, 128
SPARE_REGISTERS = 20
"""Registers of a thread beside those of tiles: row statistics, addresses, barriers (compiled for sm_90)."""
BARRIER_BYTES = 1024
"""Of shared memory, for barriers and what the compiler keeps there."""


@dataclass(frozen=True)
class WarpSizes(GpuSizes):
    """Sizes of a whole program: its tile of rows is what all consumers hold together."""

    OF_TILES = (*GpuSizes.OF_TILES, "rows", "registers")

    @staticmethod
    def of(facts: Facts, target: Target, config: Mapping[str, Value]) -> "WarpSizes":
        """Those of a config, where a block of rows is what one consumer holds."""
        (row,) = {product.m for product in facts.products}
        block, consumers = facts.block_of[row], int(config["consumers"])
        whole = {block: int(config[block]) * consumers, "num_warps": CONSUMER_WARPS * consumers}
        return WarpSizes(facts, target, {**config, **whole})

    @property
    def consumers(self) -> int:
        return int(self.config["consumers"])

    @cached_property
    def rows(self) -> int:
        """Rows of one consumer."""
        return self.lanes(self.facts.products[0].m) // self.consumers

    def words(self, columns: int) -> int:
        """Registers of a thread that hold so many columns of its consumer's rows, in float32."""
        return self.rows * columns // CONSUMER_THREADS

    @property
    def granted(self) -> int:
        """Registers of a thread that multiplies."""
        return int(self.config["registers"])

    @property
    def launched(self) -> int:
        """Registers that a thread has before they are shared out anew."""
        return self.target.registers // (PRODUCER_THREADS + self.consumers * CONSUMER_THREADS)

    @cached_property
    def registers(self) -> int:
        """Registers of a thread that multiplies: the results of its products, what is read beside them, and the left side that
        stays there."""
        words = 0
        for product in self.facts.products:
            words += self.rows * self.lanes(product.n)
            if product.chained:
                words += self.rows * self.lanes(product.k) * product.dtype.bits // 32
        words += sum(map(self.bytes, self._beside)) // 4 // self.consumers
        return words // CONSUMER_THREADS + SPARE_REGISTERS

    @cached_property
    def shared_bytes(self) -> int:
        """Rings, the tile that consumers hold, and room for what they store where that is not like it; a persistent program has
        the next held tile too, and no room to share."""
        loads = {load: self.bytes(load) * self.stages for load in self._beside}
        for product in self.facts.products:
            for load in filter(None, product.loads):
                loads[load] = self.bytes(load) * (self.stages if load.scope else 1)
        held = [load for load in loads if not load.scope]
        by_address = bool(ir.groups(self.facts.kernel))
        stored = [store for store in self.facts.stores if len(store.axes) == 2 and not by_address]
        if self.config.get("persistent"):
            stored += held
        else:
            stored = [store for store in stored if self._like(store) not in map(self._like, held)]
        room = sum(map(self.bytes, stored))
        return sum(loads.values()) + room + BARRIER_BYTES

    @cached_property
    def _beside(self) -> list[Access]:
        """What is read beside the result of the first of chained products."""
        results = [(p.m, p.n) for p in self.facts.products if p.link and p.scope]
        return [load for load in self.facts.loads if load.axes in results]

    def _like(self, access: Access) -> tuple[object, ...]:
        """What two accesses have in common whose tiles fit into one buffer."""
        return access.tensor.dtype, *map(self.lanes, access.axes)


def row_of(facts: Facts) -> ir.Axis | None:
    """The axis whose rows consumers share out, where it is tiled in the grid."""
    rows = {product.m for product in facts.products}
    tiles = {tile.axis for tile in facts.grid_tiles}
    return next(iter(rows)) if len(rows) == 1 and rows <= tiles else None
