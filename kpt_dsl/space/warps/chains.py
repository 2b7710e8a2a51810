"""First configs and times of chained products (attention) in the warp-specialised schedule. Measured on an H200 and an H100."""

import math

from kpt_dsl import ir
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.padding import guard
from kpt_dsl.passes.pipeline import hidden
from kpt_dsl.passes.starts import at_loaded_starts
from kpt_dsl.same import remembered
from kpt_dsl.space.config import Value
from kpt_dsl.space.facts import COMPARISONS, Facts
from kpt_dsl.space.gpu.model import product_seconds
from kpt_dsl.space.warps.sizes import WarpSizes

MASK = 0.18
"""Words an element that each mask of the author's holds (compiled for sm_90)."""
MASK_BEYOND = 0.6
"""What the one of lanes beyond the loop holds, which is needed again after the exponentials (compiled for sm_90)."""

EXPOSED = 0.9
"""Of products and vector work in a step, how much of the lesser one the other does not hide, for one consumer: several hide
each other's (head dim 64, not causal, ran 1.17 and 1.24 times as fast with three as with two on an H200)."""
STEP_SECONDS = 0.25e-6
"""What a step spends on barriers, and on the start and end of its products."""
PROGRAM_SECONDS = 4e-6
"""What a program spends before its first product and after its last one."""
HIDDEN_SECONDS = 1e-6
"""How much of it goes on beside the tile before where programs are persistent (head dim 64, causal, on an H100)."""
MUCH_VECTOR, MUCH_COST = 1.4, 2.0
"""From so much vector work for products' on, and by how much of the rest, a step gets slower, whose code is there once a
consumer: causal attention with a soft cap, head dim 128, took 2437 µs with three and 1680 pipelined, on an H200."""
WIDE = 128
"""Columns of an accumulator from which products are long enough to hide what large code costs."""


def ruled(facts: Facts) -> dict[str, Value]:
    """The knobs that follow from what kind of loop it is."""
    if not facts.uneven or ir.groups(facts.kernel):  # of a head's tiles the short ones lie among the long ones as it is
        return {"group": 1, "overlap": True, "persistent": False}
    # Programs that differ run longest first, some heads in turn.
    if any(facts.extent(p.n) >= WIDE for p in facts.products if p.carried):
        return {"group": 4, "overlap": True, "persistent": False}
    # Their masked steps want the code small, and short programs the next one's loads begun. Causal attention of head dim 64
    # took 629 us so at 4096 keys (16 heads in turn), 652 in programs of a tile each and 724 as the compiler pipelines it; at
    # 16384 keys 2203, and 2148 in programs of a tile each, on an H100.
    return {"group": 8, "overlap": False, "persistent": True, "num_stages": 3}


def is_roomy(sizes: WarpSizes) -> bool:
    """Whether registers are left for masks, in steps that have some."""
    facts = sizes.facts
    ragged = any(facts.dims[loop.tile.dim] % sizes.lanes(loop.tile.axis) for loop in facts.loops)
    compared = sum(op in COMPARISONS for a in facts.arithmetic if a.scope and len(a.axes) == 2 for op in a.operations)
    # Another group's elements are hidden, and cleared: room for one mask was 144 bytes too little where nothing else was masked
    # (head dim 64, compiled for sm_90).
    compared += 2 * bool(ir.groups(facts.kernel))
    masks = MASK * compared + MASK_BEYOND * _is_masked_beyond(facts.kernel, ragged)
    columns = max(sizes.lanes(p.n) for p in facts.products if not p.carried)
    return sizes.registers + sizes.words(columns) * masks <= sizes.granted


@remembered(256)
def _is_masked_beyond(kernel: ir.Kernel, ragged: bool) -> bool:
    """Whether lanes beyond a loop need a mask that the author has not written; ``ragged``: tiles reach beyond it at all."""
    loops = {loop.tile.axis for loop in ir.tile_loops(kernel.body)}
    guarded = guard(hidden(at_loaded_starts(settle(kernel))), lambda axis: ragged or axis not in loops)
    return any(isinstance(e, ir.Valid) for loop in guarded.body if isinstance(loop, ir.For) for e in ir.every_expr(loop.body))


def seconds(sizes: WarpSizes) -> float:
    """A rough model of the run time."""
    facts, target = sizes.facts, sizes.target
    tensor = vector = 0.0
    for scope, times in enumerate(sizes.steps):
        tensor += times * sum(product_seconds(sizes, p) for p in facts.products if p.scope == scope)
        vector += times * sizes.scopes[scope].work / (target.vector_flops_per_s / 2 / target.cores)
    busy = max(tensor, vector) + min(1.0, EXPOSED / sizes.consumers) * min(tensor, vector)
    if tensor:  # else no loop makes a step
        busy *= 1 + MUCH_COST * max(0.0, vector / tensor - MUCH_VECTOR)
    busy += sum(sizes.steps[1:]) * STEP_SECONDS
    rounds = sizes.programs / target.cores
    rounds = rounds + 0.5 if facts.uneven and rounds > 1 else math.ceil(rounds)
    alone = PROGRAM_SECONDS - (HIDDEN_SECONDS if sizes.config["persistent"] else 0)
    return max(rounds * (alone + busy), sizes.compulsory_seconds)
