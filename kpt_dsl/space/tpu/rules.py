"""Space rules of TPUs: a grid that runs in order, blocks that the compiler copies to vector memory two steps deep.

Block rule, vector-memory use and good sizes: the Pallas TPU documentation, and what Google's compiler accepts. The knobs
are block sizes and, where products hang on each other, how many tiles of the loop a step goes through; how deep to pipeline and
where values live is the compiler's.
"""

import math

from kpt_dsl import ir
from kpt_dsl.dtypes import f16
from kpt_dsl.emit.pallas.gathers import why_not
from kpt_dsl.emit.pallas.plan import unrollable
from kpt_dsl.space.config import Config, points
from kpt_dsl.space.facts import Axes, Facts, Product
from kpt_dsl.space.space import Knobs
from kpt_dsl.space.tpu.sizes import TpuSizes, block_unit
from kpt_dsl.targets import Target

MAX_BLOCK = 2048
"""Longest side of a block that is worth trying, whole dims excepted."""
MAX_WHOLE = 8192
"""Longest dim worth taking whole."""
GOOD_DEPTH = 1024
"""Of a product along k: deeper blocks gain nothing and delay the first step (the published winners have 512 to 1024)."""
GOOD_ELEMENTS = 2**20
"""Of a computed tile: larger ones only take vector memory from the blocks."""
GOOD_SIDE = 2048
"""Bytes along m and n of an operand of a product, narrow ones counted as 16 bits: larger tiles gain nothing by the compiler's
final code for v5e and v6e, and float32 ones take it minutes."""
GOOD_LINK, GOOD_LINK_ROWS = 2**21, 1024
"""Bytes (counted likewise) of a tile between two chained products, which goes through vector memory many times, and its rows
where there are so many: 1024 by 1024 in bfloat16 is best on v5e, and on v6e where the products are causal."""
UNROLLS = (1, 2, 4)
"""Tiles that a step goes through, of a loop in which a product is made of another's result: one tile's products then run beside
the other work of its neighbour."""
GOOD_RUN, GOOD_UNEVEN_RUN, GOOD_PART = 4, 2, 512
"""Tiles that a step goes through at most, also where some are left out (their steps have masks all along), and how long those
are of which a step has several: short ones gain less than they cost."""
ALONE = 0.33
"""Of the shorter of a step's two works, products and the rest, what is not beside the other where a step has one tile (by the
compiler's final code for v5e and v6e, attention)."""
VMEM_SHARE = 0.8
"""Of vector memory, what blocks and values may take; the rest is the compiler's, for spills and its own copies."""
STEP = 0.35e-6
"""Seconds that a grid step costs beside its work (published timings of small Pallas blocks lie between 0.25 and 0.9 µs)."""


def knobs(facts: Facts, target: Target) -> Knobs:
    """Block sizes: multiples of a register's side, or the whole dim; and how many tiles a step goes through."""
    found: Knobs = {block: _block_values(facts, target, axes) for block, axes in facts.blocks.items()}
    if any(p.chained and p.scope for p in facts.products) and (loop := unrollable(facts.kernel)) is not None:
        found[f"unroll_{loop.tile.dim}"] = UNROLLS
    return found


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config cannot run on a TPU, or None."""
    sizes = TpuSizes(facts, target, config)
    return (
        _why_added(sizes) or _why_not_gathered(sizes) or _why_odd_block(sizes) or _why_odd_run(sizes)
        or _why_empty_share(sizes)
        or _why_too_much_vmem(sizes)
    )  # fmt: skip


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """Of legal configs of good proportions the one that the model likes best; of equals, the one with the larger blocks."""
    configs = map(Config, points({name: values[::-1] for name, values in knobs.items()}))
    legal = [config for config in configs if why_illegal(facts, target, config) is None]
    good = [config for config in legal if _well_proportioned(TpuSizes(facts, target, config))]
    return min(good or legal, key=lambda config: seconds(facts, target, config), default=None)


def _well_proportioned(sizes: TpuSizes) -> bool:
    facts = sizes.facts
    links = [p for p in facts.products if not p.carried] if any(p.chained for p in facts.products) else []
    return (
        sizes.unroll <= (GOOD_UNEVEN_RUN if facts.uneven else GOOD_RUN)
        and (sizes.unroll == 1 or sizes.blocks[facts.loops[0].tile.block] >= GOOD_PART)
        and all(sizes.count(a.axes) <= GOOD_ELEMENTS for a in facts.arithmetic)
        and all(sizes.lanes(p.k) <= GOOD_DEPTH for p in facts.products if p.k in facts.block_of and not p.chained)
        and (bool(links) or all(sizes.lanes(a) * _bytes(p) <= GOOD_SIDE for p in facts.products for a in (p.m, p.n)))
        and all(sizes.count((p.m, p.n)) * _bytes(p) <= GOOD_LINK for p in links)
        and all(sizes.lanes(p.m) == min(GOOD_LINK_ROWS, facts.extent(p.m)) for p in links)
    )


def _bytes(product: Product) -> int:
    """Of an element of its operands, as matrix units take them: float16, which they do not have, as float32."""
    return 4 if product.dtype == f16 else max(2, product.dtype.bytes)


def seconds(facts: Facts, target: Target, config: Config) -> float:
    """Steps, each bound by the matrix unit, the vector unit or its copies; cores share the programs."""
    sizes = TpuSizes(facts, target, config)
    programs = math.ceil(sizes.programs / target.cores) * target.cores / sizes.programs
    total = 0.0
    for scope, steps in enumerate(sizes.steps):
        products = [p for p in facts.products if p.scope == scope]
        matrix = sum(map(sizes.flops, products)) / min((target.peak(p.dtype.name) for p in products), default=1.0)
        operations = sum(sizes.padded(a.axes) * a.instructions for a in facts.arithmetic if a.scope == scope)
        operations += sum(sizes.padded((p.m, p.n)) for p in products if p.carried)
        vector = operations / (target.vector_flops_per_s / 2)
        copies = sum(map(sizes.block_bytes, (a for a in (*facts.loads, *facts.stores) if a.scope == scope)))
        work = max(matrix, vector, copies / target.bandwidth_bytes_per_s)
        alone = ALONE * min(matrix, vector) / sizes.unroll if any(p.chained for p in products) else 0.0
        total += steps * (work + alone)
    return programs * sizes.programs * (total + sum(sizes.visits) * STEP / target.cores)


# ------------------------------------------------------------------ blocks
def _block_values(facts: Facts, target: Target, axes: Axes) -> tuple[int, ...]:
    extent = max(1, *(facts.extent(axis) for axis in axes))
    unit = max(block_unit(facts, target, axis) for axis in axes)
    sizes = [unit << i for i in range(16) if unit << i < extent and unit << i <= MAX_BLOCK]
    return tuple(sizes) + ((extent,) if extent <= MAX_WHOLE or not sizes else ())


# ------------------------------------------------------------------ what makes a point illegal
def _why_added(sizes: TpuSizes) -> str | None:
    added = ", ".join(ir.added(sizes.facts.kernel))
    return f"several programs add to {added}; on {sizes.target.name} an output has one writer" if added else None


def _why_not_gathered(sizes: TpuSizes) -> str | None:
    kernel, most = sizes.facts.kernel, int(VMEM_SHARE * sizes.target.vmem_bytes)
    for node in (e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Gather)):
        if (reason := why_not(kernel, node)) is not None:
            return reason
    for load in (a for a in sizes.facts.loads if a.places):
        if (need := sizes.block_bytes(load)) > most:
            dims = ", ".join(load.tensor.dims)
            return (
                f"{kernel.name} gathers from {load.tensor.name}[{dims}], of which {sizes.target.name} holds all that indices "
                f"may name, {need:,} B, in {most:,} B of vector memory; go through indices one after the other, "
                f'kd.parallel("…"), or tile the other dim'
            )
    return None


def _why_odd_block(sizes: TpuSizes) -> str | None:
    for axis, block in sizes.facts.block_of.items():
        unit, size = block_unit(sizes.facts, sizes.target, axis), sizes.blocks[block]
        if size % unit and size < sizes.facts.extent(axis):
            return f"{block} is {size}; on {sizes.target.name} it must be a multiple of {unit}, or all of {axis.dim}"
    return None


def _why_odd_run(sizes: TpuSizes) -> str | None:
    if sizes.unroll == 1:
        return None
    tile, several = sizes.facts.loops[0].tile, sizes.unroll
    if (tiles := sizes.tiles(tile)) % several:
        return f"unroll_{tile.dim} is {several}, which does not divide {tiles} tiles of {tile.dim}"
    if (length := sizes.blocks[tile.block]) % sizes.target.lanes:
        return f"{tile.block} is {length}; one behind the other, tiles must be multiples of {sizes.target.lanes}"
    return None


def _why_empty_share(sizes: TpuSizes) -> str | None:
    """A program always writes a block of each output: one whose share is empty would write over another's."""
    facts = sizes.facts
    for scope, loop in enumerate(facts.loops, 1):
        if loop.share is None or not any(store.scope == scope for store in facts.stores):
            continue
        dim = facts.variables[loop.share.index].dim
        if 0 < (tiles := sizes.tiles(loop.tile)) < facts.dims[dim]:
            return f"{loop.tile.block} makes {tiles} tiles of {loop.tile.dim}, too few for {facts.dims[dim]} shares"
    return None


def _why_too_much_vmem(sizes: TpuSizes) -> str | None:
    need, most = sizes.vmem_bytes, int(VMEM_SHARE * sizes.target.vmem_bytes)
    if need > most:
        return f"blocks and values need about {need:,} B of vector memory; {sizes.target.name} has {most:,} B for them"
    return None
