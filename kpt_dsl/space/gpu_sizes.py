"""What a config asks of a GPU: threads, registers, shared memory, and how many blocks then share a core."""

import math
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Product, Scope
from kpt_dsl.space.sized import Sized, up_to_power

MIN_PRODUCT_SIDE = 16
"""Least lanes along an axis of a product; along k of 8-bit operands twice as many."""
BASE_REGISTERS = 40
"""Registers of a thread that hold addresses, indices and loop state, whatever the tiles are; half of it without products."""


@dataclass(frozen=True)
class GpuSizes(Sized):
    """A kernel's sizes under a config, on a GPU."""

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

    @cached_property
    def registers(self) -> int:
        """Registers of a thread: the tiles that a loop carries and the largest one that it makes, spread over the block."""
        base = BASE_REGISTERS if self.facts.products else BASE_REGISTERS // 2
        return base + max(map(self._held, range(len(self.facts.loops) + 1))) // self.threads

    def _held(self, scope: Scope) -> int:
        """32-bit words of the tiles alive at once in a scope."""
        types = self.facts.carried[scope - 1] if scope else ()
        carried = sum(self.count(kind.shape) for kind in types)
        products = [p for p in self.facts.products if p.scope == scope]
        if not products:
            return carried + max((self.count(a.axes) for a in self.facts.arithmetic if a.scope == scope), default=0)
        results = max((self.count((p.m, p.n)) for p in products if not p.carried), default=0)
        return carried + results + max(map(self._operand_words, products))

    def _operand_words(self, product: Product) -> int:
        """32-bit words of a product's operands that registers hold."""
        m, n, k = self.lanes(product.m), self.lanes(product.n), self.lanes(product.k)
        unit = self.target.matrix_dtype(product.dtype.name)
        if unit is None:  # each thread reads the rows and columns of its own square of the result, about half of them ahead
            return math.isqrt(m * n * self.threads) * k
        if unit != product.dtype.name:  # operands are widened on their way to shared memory
            return (m + n) * k // 2
        if self.target.async_products:
            return 0
        return sum(self.bytes(load) for load in product.loads if load and load.scope != product.scope) // 4

    def _is_async(self, product: Product) -> bool:
        """Whether a product is issued ahead and reads its operands from shared memory meanwhile."""
        target = self.target
        large = self.lanes(product.m) >= target.mma_rows and self.warps >= target.mma_warps
        return target.async_products and large and target.matrix_dtype(product.dtype.name) == product.dtype.name

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block: pipelined operands, operands loaded once, and tiles on their way to be stored."""
        in_loops = max(map(self._operands, range(1, len(self.facts.loops) + 1)), default=0)
        epilogue = self.epilogue_bytes // int(self.config.get("epilogue", 1)) if self.target.staged_stores else 0
        if self.config.get("persistent"):
            return in_loops + epilogue  # the next tile's operands are loaded while this one is stored
        return max(in_loops, epilogue)

    def _operands(self, scope: Scope) -> int:
        """Bytes of shared memory that the products of a loop read."""
        total = 0
        for product in (p for p in self.facts.products if p.scope == scope):
            buffers = self.stages if self._is_async(product) else max(1, self.stages - 1)
            for load in product.loads:
                if load is None:
                    total += self._exchanged(product)
                elif load.scope == scope:
                    total += buffers * self.bytes(load)
                elif self.target.async_copies:
                    total += self.bytes(load)
        return total

    def _exchanged(self, product: Product) -> int:
        """Bytes of a computed left operand that warps pass to each other: where several share its rows."""
        alone = self._is_async(product) or self.warps * self.target.mma_rows <= self.lanes(product.m)
        return 0 if alone else self.count((product.m, product.k)) * product.dtype.bytes

    @cached_property
    def epilogue_bytes(self) -> int:
        """Bytes of shared memory that the largest stored product passes through on its way out, in one part."""
        return max((self.bytes(s) for s in self.facts.stores if s.product and len(s.axes) > 1), default=0)

    @cached_property
    def resident(self) -> int:
        """How many blocks run on a core at a time."""
        target = self.target
        registers = min(self.registers, target.thread_registers) * self.threads
        shared = self.shared_bytes + target.reserved_shared_bytes
        by_shared = target.core_shared_bytes // shared if shared else target.core_blocks
        return max(
            1, min(target.core_blocks, target.core_threads // self.threads, target.registers // registers, by_shared)
        )


def least_lanes(facts: Facts, axis: ir.Axis) -> int:
    """The least lanes that products allow an axis to have."""
    least = 1
    for product in facts.products:
        if axis in (product.m, product.n):
            least = max(least, MIN_PRODUCT_SIDE)
        if axis == product.k:
            least = max(least, MIN_PRODUCT_SIDE * (2 if product.dtype.bits == 8 else 1))
    return least
