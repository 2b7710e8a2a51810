"""What a config asks of a GPU: threads, registers, shared memory, and how many blocks then share a core."""

from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.facts import Facts, Scope
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
        if products:
            made = [self.count((p.m, p.n)) for p in products if not p.carried]
        else:
            made = [self.count(a.axes) for a in self.facts.arithmetic if a.scope == scope]
        kept = 0
        if not self.target.async_products:  # operands loaded before the loop stay in registers
            kept = sum(self.bytes(load) for p in products for load in p.loads if load and load.scope != scope)
        return carried + max(made, default=0) + kept // 4

    @cached_property
    def buffers(self) -> int:
        """How many copies of a pipelined operand are in shared memory at a time."""
        return self.stages if self.target.async_products else max(1, self.stages - 1)

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block: pipelined operands, operands loaded once, and tiles on their way to be stored."""
        in_loops = max(map(self._operands, range(1, len(self.facts.loops) + 1)), default=0)
        epilogue = self.epilogue_bytes // int(self.config.get("epilogue", 1))
        if self.config.get("persistent"):
            return in_loops + epilogue  # the next tile's operands are loaded while this one is stored
        return max(in_loops, epilogue)

    def _operands(self, scope: Scope) -> int:
        """Bytes of shared memory that the products of a loop read."""
        loads = {load for p in self.facts.products if p.scope == scope for load in p.loads if load is not None}
        pipelined = sum(self.bytes(load) for load in loads if load.scope == scope)
        hoisted = sum(self.bytes(load) for load in loads if load.scope != scope)
        return self.buffers * pipelined + (hoisted if self.target.async_products else 0)

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
