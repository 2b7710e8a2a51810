"""First configs and times of lone products in the warp-specialised schedule.

Fitted on an H100: products of 8192 x 8192 x 8192 and 8192 x 14336 x 4096, in bfloat16 and fp8, with two and three consumers,
three and four slots.
"""

import math

from kpt_dsl.space.config import Value
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu.model import L2_BYTES_PER_CLOCK, product_seconds
from kpt_dsl.space.instructions import is_long
from kpt_dsl.space.warps.sizes import WarpSizes

ERF = 1.4
"""Words that the error function, sine or cosine of an element holds beside it (compiled for sm_90)."""
FILL_SECONDS = 0.85e-6
"""From a free slot to its data."""
PROGRAM_SECONDS = 4e-6
"""What a program spends before its first product and after its last one."""
HIDDEN_SECONDS = 2.7e-6
"""How much of it goes on beside the tile before where programs are persistent: little but stores is left between tiles."""
EXPOSED = 0.35
"""Of the vector work behind the products, how much nothing goes on beside: 16384 x 3072 x 768 with gelu took 200 µs where the
model without it said 178, on an H200."""
HANDICAP = 1.2
"""How much more ``space.gpu.model`` overrates the time of lone products in the compiler's pipeline, which is what they are
compared with: by 1.25 to 1.34 on an H100, where this model is at 1.01 to 1.18."""


def ruled(_: Facts) -> dict[str, Value]:
    """The knobs that are the same for all."""
    return {"group": 8, "persistent": True}


def is_roomy(sizes: WarpSizes) -> bool:
    """Whether registers are left for what is made of the product. It has no masks: what lies beyond is loaded as zeros."""
    words = ERF * any(is_long(a.operations) for a in sizes.facts.arithmetic)
    return sizes.registers + sizes.words(max(sizes.lanes(p.n) for p in sizes.facts.products)) * words <= sizes.granted


def seconds(sizes: WarpSizes) -> float:
    """A rough model of the run time, which stands beside that of the compiler's pipeline."""
    facts, target = sizes.facts, sizes.target
    tensor = sum(sizes.steps[p.scope] * product_seconds(sizes, p) for p in facts.products)
    moved = sum(sizes.steps[load.scope] * sizes.bytes(load) for load in facts.loads)
    multiplied = max(tensor, moved / L2_BYTES_PER_CLOCK / target.clock_hz)
    # A slot is filled, multiplied, and free when the next one was multiplied.
    busy = max(multiplied, (sum(sizes.steps[1:]) * FILL_SECONDS + 2 * multiplied) / sizes.stages)
    hidden = HIDDEN_SECONDS if sizes.config["persistent"] else 0.0
    behind = EXPOSED * sizes.scopes[0].work / (target.vector_flops_per_s / 2 / target.cores)
    run = math.ceil(sizes.programs / target.cores) * (PROGRAM_SECONDS - hidden + busy + behind) + hidden
    return max(HANDICAP * run, sizes.compulsory_seconds)
