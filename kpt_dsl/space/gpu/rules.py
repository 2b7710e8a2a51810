"""Space rules of GPUs: blocks of warps, tiles in registers and shared memory, software pipelining, tensor descriptors.

Everything is asked of the target's fields and the kernel's facts; no chip and no kernel has a case of its own.
"""

from kpt_dsl import ir
from kpt_dsl.space.config import Config
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu import candidates, legal, model
from kpt_dsl.space.gpu.legal import in_parts, may_describe
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.gpu.tiles import least_lanes
from kpt_dsl.space.sized import powers, up_to_power
from kpt_dsl.space.space import Knobs
from kpt_dsl.targets import Target

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
FEW_ROWS = 16
"""Rows at once of those that a loop sums down, where there are no more of them: fewer need no binary of their own."""


def knobs(facts: Facts, target: Target) -> Knobs:
    """Knobs of one variant on a GPU."""
    found: Knobs = {block: _block_values(facts, axes) for block, axes in facts.blocks.items()}
    most_warps = target.block_threads // target.warp_lanes
    found["num_warps"] = powers(1, min(most_warps, 8) if facts.products else most_warps)
    in_loops = (load is not None and load.scope == p.scope for p in facts.products if p.scope for load in p.loads)
    if facts.streamed or any(in_loops):
        found["num_stages"] = target.stages
    if _shares_operands(facts):
        found["group"] = (1, 4, 8, 16)
        if not ir.groups(facts.kernel):  # places that hold no tile would break the flow from one to the next
            found["persistent"] = (False, True)
    elif facts.products and facts.uneven and len(facts.kernel.grid) > 1 and len(facts.grid_tiles) == 1:
        found["group"] = (1, 4, 8, 16)  # the longest programs of so many heads go first
    if target.descriptors and any(may_describe(facts, access) for access in (*facts.loads, *facts.stores)):
        found["descriptors"] = (False, True)
        if any(in_parts(facts, store) for store in facts.stores):
            found["epilogue"] = (1, 2, 4)
    if facts.products:
        found |= dict(target.options)
    return found


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config cannot run on a GPU, or None."""
    return legal.why_illegal(GpuSizes(facts, target, config))


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """A good legal config by rule."""
    return candidates.best(facts, target, knobs)


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
    if facts.summed_down.issuperset(axes) and not facts.streamed:
        low = COLUMN_PIECE
    elif facts.summed_down and facts.streamed.issuperset(axes):
        low, extent = FEW_ROWS if extent <= FEW_ROWS else low, max(extent, FEW_ROWS)
    return powers(min(low, extent), min(high, extent))


def _shares_operands(facts: Facts) -> bool:
    """Whether neighbouring programs read the same tiles, so that the order of programs matters."""
    inner = facts.kernel.grid[-2:]
    return bool(facts.products) and len(inner) == 2 and all(isinstance(loop, ir.Tile) for loop in inner)
