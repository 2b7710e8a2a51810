"""Which points of a GPU's space cannot run.

The estimates of registers and shared memory follow what Triton allocates, closely enough to refuse what cannot compile;
whether the compiler spills is for the compiler to say.
"""

from kpt_dsl.emit.triton.facts import describable
from kpt_dsl.space.facts import Access, Facts
from kpt_dsl.space.gpu.sizes import GpuSizes

MAX_TILE_ELEMENTS = 2**20
"""Most elements of one tile (Triton, TRITON_MAX_TENSOR_NUMEL)."""
MIN_PART_COLUMNS = 32
"""Fewest columns of a part of a tile that is stored in parts; less than a sector of memory a row otherwise."""


def why_illegal(sizes: GpuSizes) -> str | None:
    """Why a point cannot run, or None."""
    return why_bad_threads(sizes) or _why_too_much_shared(sizes) or _why_bad_epilogue(sizes)


def why_bad_threads(sizes: GpuSizes) -> str | None:
    """The same of its tiles, and of the threads and registers that hold them."""
    return _why_too_large(sizes) or _why_bad_warps(sizes) or _why_too_many_registers(sizes)


def may_describe(facts: Facts, access: Access) -> bool:
    """Whether a tile that a product reads or makes can go through a descriptor."""
    operands = {load.tensor.name for product in facts.products for load in product.loads if load is not None}
    in_product = access.product if access.store else access.tensor.name in operands
    return in_product and len(access.axes) == 2 and not access.places and describable(access.tensor, facts.extents)


def in_parts(facts: Facts, store: Access) -> bool:
    """Whether a store can be cut into blocks of columns: a product whose columns are tiled, stored once, by a descriptor."""
    tiled = may_describe(facts, store) and not store.scope and store.axes[1] in facts.block_of
    return tiled and any(p.n == store.axes[1] and p.scope for p in facts.products)


def _why_too_large(sizes: GpuSizes) -> str | None:
    if sizes.largest <= MAX_TILE_ELEMENTS:
        return None
    kind = next(kind for kind in sizes.facts.tile_types if sizes.count(kind.shape) > MAX_TILE_ELEMENTS)
    return f"tile {kind} has {sizes.count(kind.shape):,} elements; one may have at most {MAX_TILE_ELEMENTS:,}"


def _why_bad_warps(sizes: GpuSizes) -> str | None:
    warps, target = sizes.warps, sizes.target
    if warps > 1 and sizes.threads > sizes.largest:
        return f"{warps} warps are {sizes.threads} threads, but no tile has more than {sizes.largest} elements"
    for product in sizes.facts.products:
        rows = sizes.lanes(product.m)
        if rows >= target.mma_rows and warps < target.mma_warps:
            return f"products of {rows} rows on {target.name} are issued by {target.mma_warps} warps together, not by {warps}"
    return None


def _why_too_many_registers(sizes: GpuSizes) -> str | None:
    need, most = sizes.registers, sizes.register_limit
    if need > most:
        return f"tiles need about {need} registers a thread; with {sizes.warps} warps {sizes.target.name} has {most}"
    return None


def _why_too_much_shared(sizes: GpuSizes) -> str | None:
    need, most = sizes.shared_bytes, sizes.target.shared_bytes
    if need > most:
        return f"tiles need about {need:,} B of shared memory; a block has at most {most:,} B on {sizes.target.name}"
    return None


def _why_bad_epilogue(sizes: GpuSizes) -> str | None:
    parts = int(sizes.config.get("epilogue", 1))
    if parts > 1 and not sizes.config["descriptors"]:
        return "only descriptors store in parts; epilogue must be 1 without them"
    for store in sizes.facts.stores if parts > 1 else ():
        if in_parts(sizes.facts, store) and sizes.lanes(store.axes[1]) // parts < MIN_PART_COLUMNS:
            return f"{sizes.lanes(store.axes[1])} columns in {parts} parts are fewer than {MIN_PART_COLUMNS} a part"
    return None
