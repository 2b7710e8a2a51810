"""Space rules of the warp-specialised schedule: one warp loads, one to three warpgroups multiply rows of their own.

A block of the row tile is what one consumer holds; a program has one for each of its consumers. Measured on an H200, lone
products on an H100.
"""

import itertools
import math
from collections.abc import Mapping

from kpt_dsl import ir
from kpt_dsl.passes import pipeline
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.padding import guard
from kpt_dsl.space import descriptors
from kpt_dsl.space.config import Config, Value
from kpt_dsl.space.facts import Access, Facts
from kpt_dsl.space.gpu_model import L2_BYTES_PER_CLOCK, product_seconds
from kpt_dsl.space.gpu_sizes import GpuSizes, least_lanes
from kpt_dsl.space.instructions import instructions
from kpt_dsl.space.sized import powers, up_to_power
from kpt_dsl.space.space import Knobs
from kpt_dsl.targets import Target

CONSUMERS = (1, 2, 3)
SLOTS = (2, 3, 4)
"""How many steps the producer may be ahead."""
REGISTERS = (152, 160, 216, 240)
"""Registers of a thread that multiplies; setmaxnreg takes multiples of 8 (PTX ISA)."""
GROUPS = (1, 4, 8, 16)
PRODUCER_REGISTERS = 24
PRODUCER_THREADS = 128
"""Warps come in groups of four, so that registers are set aside for a whole one."""
CONSUMER_THREADS = 128
MAX_COLUMNS = 256
"""Most columns of a tile in one instruction, and most rows that one copy moves."""
INSTRUCTION_REGISTERS = 26
"""Of a thread, beside the results of one instruction: ptxas takes them from those that a thread is launched with."""
SPARE_REGISTERS = 20
"""Registers of a thread beside those of tiles: row statistics, addresses, barriers (compiled for sm_90)."""
MASK = 0.18
"""Words an element that each mask of the author's holds (compiled for sm_90)."""
MASK_BEYOND = 0.6
"""What the one of lanes beyond the loop holds, which is needed again after the exponentials (compiled for sm_90)."""
ERF = 1.4
"""Words that the error function of an element holds beside it (compiled for sm_90)."""
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
BARRIER_BYTES = 1024
"""Of shared memory, for barriers and what the compiler keeps there."""

EXPOSED = 0.9
"""Of products and vector work in a step, how much of the lesser one the other does not hide, for one consumer: several hide
each other's (head dim 64, not causal, ran 1.17 and 1.24 times as fast with three as with two on an H200)."""
STEP_SECONDS = 0.25e-6
"""What a step spends on barriers, and on the start and end of its products."""
PROGRAM_SECONDS = 4e-6
"""What a program spends before its first product and after its last one."""
HIDDEN_SECONDS = 1e-6
"""How much of it goes on beside the tile before where programs are persistent (head dim 64, causal, on an H100)."""
LONE_HIDDEN_SECONDS = 2.7e-6
"""The same where one product a step is all there is: nothing but stores is then left between tiles (fitted on an H100)."""
FILL_SECONDS = 0.85e-6
"""From a free slot to its data (fitted on an H100: products of 8192 x 8192 x 8192, of two and three consumers and slots)."""
LONE_HANDICAP = 1.2
"""How much more ``gpu_model`` overrates the time of lone products in the compiler's pipeline, which is what they are compared
with: by 1.25 to 1.34 on an H100, where this model is at 1.01 to 1.18."""
WIDE = 128
"""Columns of an accumulator from which products are long enough to hide what large code costs."""


def knobs(facts: Facts, target: Target) -> Knobs:
    """Knobs of one variant; none where the kernel has no such schedule."""
    row = _row(facts)
    if row is None or facts.extent(row) < target.mma_rows or why_not(facts) is not None:
        return {}
    found: Knobs = {}
    for block, axes in facts.blocks.items():
        low = max(least_lanes(facts, axis) for axis in axes)
        extent = up_to_power(max(facts.extent(axis) for axis in axes))
        rows = (target.mma_rows,)
        found[block] = rows if row in axes else powers(max(low, 64), max(low, 64, min(MAX_COLUMNS, extent)))
    found |= {"consumers": CONSUMERS, "num_stages": SLOTS, "registers": REGISTERS}
    if _chained(facts):
        found["overlap"] = (False, True)
    return found | {"group": GROUPS, "persistent": (False, True)}


def why_not(facts: Facts) -> str | None:
    """Why a kernel has no warp-specialised schedule, or None."""
    reason = pipeline.why_not(guard(settle(facts.kernel), lambda _: True))
    if reason is not None:
        return reason
    inner = {} if _chained(facts) else {load.axes: p.k for p in facts.products for load in p.loads if load}
    for access in (a for a in (*facts.loads, *facts.stores) if len(a.axes) == 2):
        dtype = access.tensor.dtype
        if dtype.bits == 8 and access.axes in inner:
            if access.axes[1] != inner[access.axes]:
                return f"{access.tensor.name} is {dtype}, which is multiplied along its last dim only"
        elif dtype.bits != 16:
            return f"{access.tensor.name} is {dtype}; tiles of 16-bit floats, or lone products of 8-bit ones"
        if not descriptors.describable(facts.problem, access.tensor.name):
            return f"no tensor descriptor can hold {access.tensor.name}"
    return None


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config cannot run, or None."""
    consumers = int(config["consumers"])
    taken = consumers * CONSUMER_THREADS * int(config["registers"]) + PRODUCER_THREADS * PRODUCER_REGISTERS
    if taken > target.registers:
        asked = f"{consumers} consumers of {config['registers']} registers a thread take {taken:,}"
        return f"{asked}; {target.name} has {target.registers:,}"
    sizes = _sizes(facts, target, config)
    for product in facts.products:
        if sizes.lanes(product.n) > MAX_COLUMNS or sizes.lanes(product.k) > MAX_COLUMNS:
            return f"a product of {sizes.lanes(product.n)} columns over {sizes.lanes(product.k)}; {MAX_COLUMNS} at most"
    rows = int(config[_block_of_row(facts)])
    launched = target.registers // (PRODUCER_THREADS + consumers * CONSUMER_THREADS)
    widest = max(sizes.lanes(p.n) for p in facts.products)
    if rows * widest // CONSUMER_THREADS + INSTRUCTION_REGISTERS > launched:
        return f"products of {widest} columns take more registers than the {launched} that a thread is launched with"
    need = _registers(sizes, rows)
    if need > int(config["registers"]):
        return f"tiles need about {need} registers a thread; consumers have {config['registers']}"
    shared = _shared_bytes(sizes)
    if shared > target.shared_bytes:
        return f"tiles need about {shared:,} B of shared memory; a block has at most {target.shared_bytes:,} B on {target.name}"
    return None


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """A good legal config by rule: the fastest by the model, with room for masks where there are any."""
    if not knobs:
        return None
    ruled = _ruled(facts)
    searched = {name: values for name, values in knobs.items() if name not in ruled}
    points = (dict(zip(searched, values, strict=True)) for values in itertools.product(*searched.values()))
    candidates = (Config(point | ruled) for point in points)
    beyond = {ragged: _masked_beyond(facts, ragged) for ragged in (False, True)}
    legal = (c for c in candidates if why_illegal(facts, target, c) is None and _roomy(facts, target, c, beyond))
    # Of equals the one with the most registers: what it does not need costs nothing.
    best = min(legal, key=lambda c: (seconds(facts, target, c), -int(c["registers"])), default=None)
    return None if best is None else Config({name: best[name] for name in knobs})


def _ruled(facts: Facts) -> dict[str, Value]:
    """The knobs that follow from what kind of loop it is."""
    if not _chained(facts):
        return {"group": 8, "persistent": True}
    if not facts.uneven:
        return {"group": 1, "overlap": True, "persistent": False}
    # Programs that differ run longest first, some heads in turn.
    if any(facts.extent(p.n) >= WIDE for p in facts.products if p.carried):
        return {"group": 4, "overlap": True, "persistent": False}
    # Their masked steps want the code small, and short programs the next one's loads begun. Causal attention of head dim 64
    # took 629 us so at 4096 keys (16 heads in turn), 652 in programs of a tile each and 724 as the compiler pipelines it; at
    # 16384 keys 2203, and 2148 in programs of a tile each, on an H100.
    return {"group": 8, "overlap": False, "persistent": True, "num_stages": 3}


def _roomy(facts: Facts, target: Target, config: Config, beyond: Mapping[bool, bool]) -> bool:
    """Whether registers are left for masks, in steps that have some, or for what ends a lone product.

    ``beyond``: whether one mask is of lanes beyond the loop, by whether a dim is ragged.
    """
    sizes = _sizes(facts, target, config)
    rows = int(config[_block_of_row(facts)])
    if not _chained(facts):  # it has no masks: what lies beyond is loaded as zeros
        words = ERF * any("erf" in a.operations for a in facts.arithmetic)
        widest = max(sizes.lanes(p.n) for p in facts.products)
        return _registers(sizes, rows) + rows * widest * words // CONSUMER_THREADS <= int(config["registers"])
    ragged = any(facts.dims[loop.tile.dim] % sizes.lanes(loop.tile.axis) for loop in facts.loops)
    compared = sum(op in COMPARISONS for a in facts.arithmetic if a.scope and len(a.axes) == 2 for op in a.operations)
    masks = MASK * compared + MASK_BEYOND * beyond[ragged]
    columns = max(sizes.lanes(p.n) for p in facts.products if not p.carried)
    return _registers(sizes, rows) + rows * columns * masks // CONSUMER_THREADS <= int(config["registers"])


def _masked_beyond(facts: Facts, ragged: bool) -> bool:
    """Whether lanes beyond a loop need a mask that the author has not written."""
    guarded = guard(settle(facts.kernel), lambda axis: ragged or axis not in {loop.tile.axis for loop in facts.loops})
    return any(isinstance(e, ir.Valid) for loop in guarded.body if isinstance(loop, ir.For) for e in ir.every_expr(loop.body))


def seconds(facts: Facts, target: Target, config: Config) -> float:
    """A rough model of the run time of a legal config."""
    sizes = _sizes(facts, target, config)
    tensor = vector = 0.0
    for scope, times in enumerate(sizes.steps):
        tensor += times * sum(product_seconds(sizes, p) for p in facts.products if p.scope == scope)
        work = sum(sizes.count(a.axes) * instructions(a.operations) for a in facts.arithmetic if a.scope == scope)
        vector += times * work / (target.vector_flops_per_s / 2 / target.cores)
    steps = sum(sizes.steps[1:])
    if _chained(facts):
        busy = max(tensor, vector) + min(1.0, EXPOSED / int(config["consumers"])) * min(tensor, vector)
        busy += steps * STEP_SECONDS
        hidden = HIDDEN_SECONDS
    else:
        moved = sum(sizes.steps[load.scope] * sizes.bytes(load) for load in facts.loads)
        multiplied = max(tensor, moved / L2_BYTES_PER_CLOCK / target.clock_hz)
        # A slot is filled, multiplied, and free when the next one was multiplied.
        busy = max(multiplied, (steps * FILL_SECONDS + 2 * multiplied) / sizes.stages)
        hidden = LONE_HIDDEN_SECONDS
    rounds = sizes.programs / target.cores
    rounds = rounds + 0.5 if facts.uneven and rounds > 1 else math.ceil(rounds)
    alone = PROGRAM_SECONDS - (hidden if config["persistent"] else 0)
    run = rounds * (alone + busy)
    if not _chained(facts):
        run = LONE_HANDICAP * (run + PROGRAM_SECONDS - alone)  # nothing hides the first tile's
    return max(run, sizes.compulsory_seconds)


# ------------------------------------------------------------------ sizes
def _row(facts: Facts) -> ir.Axis | None:
    """The axis whose rows consumers share out, where it is tiled in the grid."""
    rows = {product.m for product in facts.products}
    tiles = {tile.axis for tile in facts.grid_tiles}
    return next(iter(rows)) if len(rows) == 1 and rows <= tiles else None


def _block_of_row(facts: Facts) -> str:
    row = _row(facts)
    assert row is not None
    return facts.block_of[row]


def _sizes(facts: Facts, target: Target, config: Config) -> GpuSizes:
    """Sizes of a whole program."""
    block = _block_of_row(facts)
    consumers = int(config["consumers"])
    return GpuSizes(facts, target, config | {block: int(config[block]) * consumers, "num_warps": 4 * consumers})


def _chained(facts: Facts) -> bool:
    return any(p.chained for p in facts.products)


def _registers(sizes: GpuSizes, rows: int) -> int:
    """Registers of a thread that multiplies: the results of its products, and the left side that stays there."""
    words = 0
    for product in sizes.facts.products:
        words += rows * sizes.lanes(product.n)
        if product.chained:
            words += rows * sizes.lanes(product.k) * product.dtype.bits // 32
    return words // CONSUMER_THREADS + SPARE_REGISTERS


def _shared_bytes(sizes: GpuSizes) -> int:
    """Rings, the tile that consumers hold, and room for what they store where that is no more; a persistent program has the
    next held tile too, and no room to share."""
    loads: dict[Access, int] = {}
    for product in sizes.facts.products:
        for load in filter(None, product.loads):
            loads[load] = sizes.bytes(load) * (sizes.stages if load.scope else 1)
    held = max((sizes.bytes(load) for load in loads if not load.scope), default=0)
    stored = sum(sizes.bytes(s) for s in sizes.facts.stores if len(s.axes) == 2)
    room = stored + held if sizes.config.get("persistent") else max(0, stored - held)
    return sum(loads.values()) + room + BARRIER_BYTES
