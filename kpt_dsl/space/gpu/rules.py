"""Space rules of GPUs: blocks of warps, tiles in registers and shared memory, software pipelining, tensor descriptors.

Everything is asked of the target's fields and the kernel's facts; no chip and no kernel has a case of its own.
The estimates of registers and shared memory follow what Triton allocates, closely enough to refuse what cannot compile;
whether the compiler spills is for the compiler to say.
"""

from kpt_dsl import ir
from kpt_dsl.emit.triton.facts import describable
from kpt_dsl.space.config import Config
from kpt_dsl.space.facts import Access, Facts
from kpt_dsl.space.gpu import candidates, model
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.gpu.tiles import least_lanes
from kpt_dsl.space.sized import powers, up_to_power
from kpt_dsl.space.space import Knobs
from kpt_dsl.targets import Target

MAX_TILE_ELEMENTS = 2**20
"""Most elements of one tile (Triton, TRITON_MAX_TENSOR_NUMEL)."""
PRODUCT_BLOCK = 256
"""Longest side of a product's tile that is worth trying: operands of more do not fit beside their pipeline."""
ROW_BLOCK = 8192
"""Longest piece of a row worth reading at once in a loop; more bytes than a core needs in flight gain nothing."""
ROW_PIECE = 128
"""Shortest piece of a row worth reading at once."""
COLUMN_PIECE = 32
"""Fewest columns worth one program that does no more than sum down them: a line of 128 B of float32."""
BATCH_BLOCK = 64
"""Most rows worth giving one program where rows do not share anything."""

MIN_PART_COLUMNS = 32
"""Fewest columns of a part of a tile that is stored in parts; less than a sector of memory a row otherwise."""


def knobs(facts: Facts, target: Target) -> Knobs:
    """Knobs of one variant on a GPU."""
    found: Knobs = {block: _block_values(facts, axes) for block, axes in facts.blocks.items()}
    most_warps = target.block_threads // target.warp_lanes
    found["num_warps"] = powers(1, min(most_warps, 8) if facts.products else most_warps)
    if any(load is not None and load.scope == p.scope for p in facts.products if p.scope for load in p.loads):
        found["num_stages"] = target.stages
    if facts.streams:
        found["num_stages"] = target.stages
    if _shares_operands(facts):
        found["group"] = (1, 4, 8, 16)
        found["persistent"] = (False, True)
    elif facts.products and facts.uneven and len(facts.kernel.grid) > 1 and len(facts.grid_tiles) == 1:
        found["group"] = (1, 4, 8, 16)  # the longest programs of so many heads go first
    if target.descriptors and any(_may_describe(facts, access) for access in (*facts.loads, *facts.stores)):
        found["descriptors"] = (False, True)
        if any(_parts(facts, store) for store in facts.stores):
            found["epilogue"] = (1, 2, 4)
    if facts.products:
        found |= dict(target.options)
    return found


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config cannot run on a GPU, or None."""
    return _why_illegal(GpuSizes(facts, target, config))


def _why_illegal(sizes: GpuSizes) -> str | None:
    return (
        _why_too_large(sizes)
        or _why_bad_warps(sizes)
        or _why_too_many_registers(sizes)
        or _why_too_much_shared(sizes)
        or _why_bad_epilogue(sizes)
    )


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """A good legal config by rule."""
    return candidates.best(facts, target, knobs, _why_illegal)


def seconds(facts: Facts, target: Target, config: Config) -> float:
    """A rough model of the run time of a legal config."""
    return model.seconds(GpuSizes(facts, target, config))


# ------------------------------------------------------------------ which knobs there are
def _block_values(facts: Facts, axes: tuple[ir.Axis, ...]) -> tuple[int, ...]:
    extent = up_to_power(max(1, *(facts.extent(axis) for axis in axes)))
    if facts.product_axes.intersection(axes):
        low = max(least_lanes(facts, axis) for axis in axes)
        return powers(low, max(low, min(PRODUCT_BLOCK, extent)))
    along_rows = facts.row_axes.intersection(axes) and not facts.streamed.issuperset(axes)
    low, high = (ROW_PIECE, ROW_BLOCK) if along_rows else (1, BATCH_BLOCK)
    if facts.summed_down.issuperset(axes) and not facts.streams:
        low = COLUMN_PIECE
    return powers(min(low, extent), min(high, extent))


def _shares_operands(facts: Facts) -> bool:
    """Whether neighbouring programs read the same tiles, so that the order of programs matters."""
    inner = facts.kernel.grid[-2:]
    return bool(facts.products) and len(inner) == 2 and all(isinstance(loop, ir.Tile) for loop in inner)


def _may_describe(facts: Facts, access: Access) -> bool:
    """Whether a tile that a product reads or makes can go through a descriptor."""
    operands = {load.tensor.name for product in facts.products for load in product.loads if load is not None}
    in_product = access.product if access.store else access.tensor.name in operands
    return in_product and len(access.axes) == 2 and describable(facts.problem, access.tensor.name)


def _parts(facts: Facts, store: Access) -> bool:
    """Whether a store can be cut into blocks of columns: a product whose columns are tiled, stored once, by a descriptor."""
    tiled = _may_describe(facts, store) and not store.scope and store.axes[1] in facts.block_of
    return tiled and any(p.n == store.axes[1] and p.scope for p in facts.products)


# ------------------------------------------------------------------ what makes a point illegal
def _why_too_large(sizes: GpuSizes) -> str | None:
    for kind in sizes.facts.tile_types:
        if (count := sizes.count(kind.shape)) > MAX_TILE_ELEMENTS:
            return f"tile {kind} has {count:,} elements; one may have at most {MAX_TILE_ELEMENTS:,}"
    return None


def _why_bad_warps(sizes: GpuSizes) -> str | None:
    largest = max((sizes.count(kind.shape) for kind in sizes.facts.tile_types), default=1)
    warps, target = sizes.warps, sizes.target
    if warps > 1 and sizes.threads > largest:
        return f"{warps} warps are {sizes.threads} threads, but no tile has more than {largest} elements"
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
    for store in sizes.facts.stores:
        if parts > 1 and _parts(sizes.facts, store) and sizes.lanes(store.axes[1]) // parts < MIN_PART_COLUMNS:
            return f"{sizes.lanes(store.axes[1])} columns in {parts} parts are fewer than {MIN_PART_COLUMNS} a part"
    return None
