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

MASK_WORDS = 0.5
"""Words an element that each mask holds (compiled for sm_90: three masks of a 64x128 tile took 62 to 90 registers a thread)."""
AHEAD = 1.25
"""Of the sides of its square, how much a thread has read of both together when vector units multiply (compiled for sm_80)."""
INSTRUCTION_BYTES = 32
"""Bytes along k of the operands of one matrix instruction."""
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})


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

    @cached_property
    def pressure(self) -> float:
        """Share of a thread's registers in use once masks and operands that the compiler reads ahead are counted.

        Spills become likely a little below one; unlike ``registers`` this is no limit, for the compiler can give way here.
        """
        if self.facts.products:
            extra = max(self._mask_words(p) + self._read_words(p) for p in self.facts.products)
        else:  # a row stays while another is made of it
            extra = max(map(self._held, range(len(self.facts.loops) + 1)))
        return (self.registers + extra / self.threads) / self.register_limit

    @property
    def register_limit(self) -> int:
        """Most registers of a thread, so that it and a whole block can run."""
        return min(self.target.thread_registers, self.target.registers // self.threads)

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
        """32-bit words of a product's operands that must be in registers."""
        size = product.dtype.bytes
        unit = self.target.matrix_dtype(product.dtype.name)
        if unit not in (None, product.dtype.name):  # widened on the way to shared memory
            return (self.lanes(product.m) + self.lanes(product.n)) * self.lanes(product.k) // 2
        left, right = product.loads
        words = 0 if left else self.count((product.m, product.k)) * size // 4
        if not self.target.async_products:  # what was loaded before the loop stays in registers
            words += sum(self.bytes(load) for load in (left, right) if load and load.scope != product.scope) // 4
        return words

    def _read_words(self, product: Product) -> float:
        """32-bit words of operands that pass through registers on their way to the units that multiply."""
        m, n, k = self.lanes(product.m), self.lanes(product.n), self.lanes(product.k)
        if self.target.matrix_dtype(product.dtype.name) is None:
            return AHEAD * math.isqrt(m * n * self.threads) * k  # the rows and columns of each thread's square
        if self.target.async_products:
            return 0.0
        # Each warp reads its rows and columns one instruction deep, and the next while it multiplies these.
        down = min(self.warps, m // MIN_PRODUCT_SIDE)
        return 2 * (m / down + n * down / self.warps) * self.warps * INSTRUCTION_BYTES / 4

    def _mask_words(self, product: Product) -> float:
        """32-bit words that the masks of a product's result hold, in indices and predicates."""
        inside = (a for a in self.facts.arithmetic if a.scope == product.scope and a.axes == (product.m, product.n))
        masks = sum(operation in COMPARISONS for a in inside for operation in a.operations)
        if product.scope and any(isinstance(e, ir.Load) for e in ir.walk(self.facts.loops[product.scope - 1].stop)):
            masks += 1  # a length that is read at run time leaves padding in the last tile
        return MASK_WORDS * masks * self.count((product.m, product.n))

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
        registers = min(self.registers, self.register_limit) * self.threads
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
