"""What a config asks of a GPU: threads, registers, shared memory, and how many blocks then share a core."""

import math
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl.space.facts import Access, Product, Scope
from kpt_dsl.space.gpu import registers
from kpt_dsl.space.gpu.tiles import MIN_PRODUCT_SIDE, GpuTiles


@dataclass(frozen=True)
class GpuSizes(GpuTiles):
    """What a kernel asks of a GPU under a config."""

    @cached_property
    def registers(self) -> int:
        """Registers that a thread cannot do without."""
        return registers.needed(self)

    @cached_property
    def pressure(self) -> float:
        """Share of a thread's registers in use if the compiler has its way; spills become likely a little below one."""
        return (self.registers + registers.wished(self)) / self.register_limit

    @property
    def register_limit(self) -> int:
        """Most registers of a thread, so that it and a whole block can run."""
        return min(self.target.thread_registers, self.target.registers // self.threads)

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block: pipelined operands, operands loaded once, and tiles on their way to be stored."""
        in_loops = max(map(self._operands, range(1, len(self.facts.loops) + 1)), default=0)
        in_loops += self.ahead_bytes if self.target.async_copies else 0
        staged = self.epilogue_bytes if self.target.staged_stores else 0
        if self.config.get("descriptors"):
            staged += sum(map(self.bytes, self.facts.beside_results))
        epilogue = staged // int(self.config.get("epilogue", 1))
        if self.config.get("persistent"):
            return in_loops + epilogue  # the next tile's operands are loaded while this one is stored
        return max(in_loops, epilogue)

    def _operands(self, scope: Scope) -> int:
        """Bytes of shared memory that the products of a loop read."""
        held, passing = 0, 0
        once: dict[Access, int] = {}
        for product in (p for p in self.facts.products if p.scope == scope):
            each = self.is_async(product) or self.target.buffer_per_stage
            buffers = self.stages if each else max(1, self.stages - 1)
            for load in product.loads:
                if load is None:
                    held += self._exchanged(product)
                else:  # several products may read what was loaded once
                    once[load] = max(once.get(load, 0), buffers * self.bytes(load) if load.scope == scope else 0)
        held += sum(once.values())
        # A product that is stored in the loop passes through on its way, beside what is read.
        held += sum(self.bytes(s) for s in self.facts.stores if s.scope == scope and s.product)
        passing = sum(self.bytes(load) for load in once if load.scope != scope)
        # Where copies pass through registers, what was loaded before the loop ends up there, and its room is used again.
        return held + passing if self.target.async_copies else max(held, passing)

    def _exchanged(self, product: Product) -> int:
        """Bytes of a computed left operand that warps pass to each other: where several share its rows; and where products have
        memory of their own, one that is made of several of them."""
        links = sum(p.scope == product.scope and p.link for p in self.facts.products)
        if self.target.tensor_memory_bytes and links > 1:
            return self.count((product.m, product.k)) * product.dtype.bytes
        alone = self.is_async(product) or self.warps * MIN_PRODUCT_SIDE <= self.lanes(product.m)
        return 0 if alone else self.count((product.m, product.k)) * product.dtype.bytes

    @cached_property
    def epilogue_bytes(self) -> int:
        """Bytes of shared memory that the largest stored product passes through on its way out, in one part."""
        return max((self.bytes(s) for s in self.facts.stores if s.product and len(s.axes) > 1), default=0)

    @property
    def most_resident(self) -> int:
        """No fewer than run on a core at a time, however deep the pipeline is."""
        held = min(self.registers, self.register_limit) * self.threads
        return max(1, min(self.target.core_blocks, self.target.core_threads // self.threads, self.target.registers // held))

    @cached_property
    def resident(self) -> int:
        """How many blocks run on a core at a time."""
        target = self.target
        beside = registers.wished(self) if self.facts.streamed else registers.likely_beside_links(self)
        each = self.registers + math.ceil(beside)
        held = min(each, self.register_limit) * self.threads
        shared = self.shared_bytes + target.reserved_shared_bytes
        by_shared = target.core_shared_bytes // shared if shared else target.core_blocks
        return max(
            1, min(target.core_blocks, target.core_threads // self.threads, target.registers // held, by_shared)
        )
