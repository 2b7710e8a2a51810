"""Space rules of the warp-specialised schedule: one warp loads, one to three warpgroups multiply rows of their own.

A block of the row tile is what one consumer holds; a program has one for each of its consumers. What a config is worth is known
apart for chained products (``chains``) and lone ones (``products``).
"""

import itertools
from typing import Protocol

from kpt_dsl import ir
from kpt_dsl.emit.triton.facts import describable
from kpt_dsl.passes import pipeline
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.padding import guard
from kpt_dsl.passes.starts import at_loaded_starts
from kpt_dsl.same import remembered
from kpt_dsl.space.config import Config, Value, points
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu.tiles import least_lanes
from kpt_dsl.space.sized import powers, up_to_power
from kpt_dsl.space.space import Knobs
from kpt_dsl.space.warps import chains, products
from kpt_dsl.space.warps.sizes import CONSUMER_THREADS, PRODUCER_REGISTERS, PRODUCER_THREADS, WarpSizes, row_of
from kpt_dsl.targets import Target

CONSUMERS = (1, 2, 3)
SLOTS = (2, 3, 4)
"""How many steps the producer may be ahead."""
REGISTERS = (152, 160, 216, 240)
"""Registers of a thread that multiplies; setmaxnreg takes multiples of 8 (PTX ISA)."""
GROUPS = (1, 4, 8, 16)
MAX_COLUMNS = 256
"""Most columns of a tile in one instruction, and most rows that one copy moves."""
INSTRUCTION_REGISTERS = 26
"""Of a thread, beside the results of one instruction: ptxas takes them from those that a thread is launched with."""


class Worth(Protocol):
    """What is known of one kind of products."""

    def ruled(self, facts: Facts, /) -> dict[str, Value]:
        """The knobs that follow from the kernel."""

    def is_roomy(self, sizes: WarpSizes) -> bool:
        """Whether registers are left for what the model of registers does not see."""

    def seconds(self, sizes: WarpSizes) -> float:
        """A rough model of the run time of a legal config."""


def knobs(facts: Facts, target: Target) -> Knobs:
    """Knobs of one variant; none where the kernel has no such schedule."""
    row = row_of(facts)
    if row is None or facts.extent(row) < target.mma_rows or why_not(facts) is not None:
        return {}
    found: Knobs = {}
    for block, axes in facts.blocks.items():
        low = max(least_lanes(facts, axis) for axis in axes)
        extent = up_to_power(max(facts.extent(axis) for axis in axes))
        rows = (target.mma_rows,)
        found[block] = rows if row in axes else powers(max(low, 64), max(low, 64, min(MAX_COLUMNS, extent)))
    found |= {"consumers": CONSUMERS, "num_stages": SLOTS, "registers": REGISTERS}
    if _is_chained(facts):
        found["overlap"] = (False, True)
    in_turn = (False,) if ir.groups(facts.kernel) else (False, True)  # places that hold no tile would break the flow
    return found | {"group": GROUPS, "persistent": in_turn}


def why_not(facts: Facts) -> str | None:
    """Why a kernel has no warp-specialised schedule, or None."""
    if (reason := _why_not_cut(facts.kernel)) is not None:
        return reason
    inner = {} if _is_chained(facts) else {load.axes: p.k for p in facts.products for load in p.loads if load}
    for access in (a for a in (*facts.loads, *facts.stores) if len(a.axes) == 2):
        dtype = access.tensor.dtype
        if dtype.is_fp8 and access.axes in inner:
            if access.axes[1] != inner[access.axes]:
                return f"{access.tensor.name} is {dtype}, which is multiplied along its last dim only"
        elif dtype.bits != 16:
            return f"{access.tensor.name} is {dtype}; tiles of 16-bit floats, or lone products of 8-bit ones"
        repeated = set(access.tensor.dims) - {axis.dim for axis in access.axes}
        if not describable(access.tensor, facts.extents, repeated):
            return f"no tensor descriptor can hold {access.tensor.name}"
    return None


@remembered(256)
def _why_not_cut(kernel: ir.Kernel) -> str | None:
    """Why the statements of a kernel cannot be shared out, or None."""
    return pipeline.why_not(guard(pipeline.hidden(at_loaded_starts(settle(kernel))), lambda _: True))


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config cannot run, or None."""
    return _why_illegal(WarpSizes.of(facts, target, config))


def _why_illegal(sizes: WarpSizes) -> str | None:
    target = sizes.target
    taken = sizes.consumers * CONSUMER_THREADS * sizes.granted + PRODUCER_THREADS * PRODUCER_REGISTERS
    if taken > target.registers:
        asked = f"{sizes.consumers} consumers of {sizes.granted} registers a thread take {taken:,}"
        return f"{asked}; {target.name} has {target.registers:,}"
    for product in sizes.facts.products:
        columns, depth = sizes.lanes(product.n), sizes.lanes(product.k)
        if columns > MAX_COLUMNS or depth > MAX_COLUMNS:
            return f"a product of {columns} columns over {depth}; {MAX_COLUMNS} at most"
        if sizes.words(columns) + INSTRUCTION_REGISTERS > sizes.launched:
            return f"products of {columns} columns take more registers than the {sizes.launched} that a thread is launched with"
    if sizes.registers > sizes.granted:
        return f"tiles need about {sizes.registers} registers a thread; consumers have {sizes.granted}"
    if (shared := sizes.shared_bytes) > target.shared_bytes:
        return f"tiles need about {shared:,} B of shared memory; a block has at most {target.shared_bytes:,} B on {target.name}"
    return None


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """A good legal config by rule: the fastest by the model, with room for what it has to do beside its products."""
    worth, (row,) = _worth(facts), {p.m for p in facts.products}
    searched = knobs | {name: (value,) for name, value in worth.ruled(facts).items()}
    inner = {name: searched.pop(name) for name in ("num_stages", "registers")}
    found: list[WarpSizes] = []
    for point in points(searched):
        tiles = WarpSizes.of(facts, target, point)
        for stages in inner["num_stages"]:
            # The most registers: what it does not need costs nothing.
            asked = (tiles.having({"num_stages": stages, "registers": n}) for n in inner["registers"][::-1])
            found += itertools.islice((s for s in asked if _why_illegal(s) is None and worth.is_roomy(s)), 1)
    best = min(found, key=lambda sizes: (worth.seconds(sizes), -sizes.granted), default=None)
    return None if best is None else Config({name: best.config[name] for name in knobs}) | {facts.block_of[row]: best.rows}


def seconds(facts: Facts, target: Target, config: Config) -> float:
    """A rough model of the run time of a legal config."""
    return _worth(facts).seconds(WarpSizes.of(facts, target, config))


def _is_chained(facts: Facts) -> bool:
    return any(p.chained for p in facts.products)


def _worth(facts: Facts) -> Worth:
    return chains if _is_chained(facts) else products
