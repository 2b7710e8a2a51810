"""How many registers the tiles of a kernel take on a GPU: what must be there, and what the compiler would like to have there.

The figures follow what Triton's compilers do with the ops of this repository on every architecture, within some tens of
registers: enough to tell tiles that fit from tiles that spill.
"""

import math

from kpt_dsl import ir
from kpt_dsl.space.facts import COMPARISONS, Product, Scope
from kpt_dsl.space.gpu.tiles import GpuTiles

BASE = 40
"""Registers of a thread that hold addresses, indices and loop state, whatever the tiles are; half of it without products."""
MASK = 0.5
"""Words an element that each mask holds (compiled for sm_90: three masks of a 64x128 tile took 62 to 90 registers a thread)."""
AHEAD = 1.25
"""Of the sides of its square, how much a thread has read of both together when vector units multiply (compiled for sm_80)."""
FRAGMENTS = 1.5
"""Of the operands that a warp multiplies next, how much is in registers, those after them included (sm_80, gfx942)."""
WIDENED = 3
"""Words that widening an 8-bit operand takes, for each word of the result (compiled for gfx90a, gfx1100)."""
INSTRUCTION_BYTES = 32
"""Bytes along k of the operands of one matrix instruction."""
INSTRUCTION_ROWS = 16
"""Rows of the smallest matrix instruction: warps beyond a tile's rows share them."""
WORDS_AHEAD = 0.4
"""Registers for each byte that a stream is ahead where copies pass through registers, addresses too (compiled for gfx942)."""
TEMPORARIES = 1.25
"""Tiles that a streaming loop makes on the way, beside those that it keeps across its sums (norm gradients, all GPUs)."""
EARLY = 0.25
"""Words an element that tiles read again hold where a pipeline brings them from the start of a step (compiled for sm_90)."""
ADDED = 4
"""Words of each element that is added to memory: an address of 64 bits, and itself before and after it is laid out along rows
(compiled for sm_80, sm_120, gfx942, gfx950)."""
ADDED_ASYNC = 0.5
"""The same where products are issued ahead: an address for four elements (compiled for sm_90)."""
EDGES = 48
"""Registers of a thread that a loop which adds takes where it may begin or end within a dim: its masked steps have operands,
masks and addresses of their own (compiled for sm_90, gfx942, gfx950: 40 to 57)."""
EDGES_ASYNC = 24
"""The same where products are issued ahead, and loops of groups do not begin anywhere. With all 48, causal gradients of head
dim 128 in one pass had 16 queries at a time beside 64 keys and took 1299 µs; with 32 they take 961 (4096 keys, H200). 184 such
problems take 0.93 times as long, though those beside 128 keys spill 56 to 232 bytes with Triton 3.6."""

BESIDE_LINKS = 2
"""Words an element of results that wait for each other that masks and what is between them take (compiled for sm_90, 64 keys of
64: tiles of 16, 32, 64 queries took 126, 166, 239 registers where the last is ragged, 121, 154, 209 where it is not)."""
DEEPER = 8
"""Registers that a further stage takes there (6 to 22)."""
EVEN = 0.6
"""Of both, what is there at once where no bound moves with a tile, so that there is but the last tile's mask (32 queries beside
64 keys took 143 to 149 registers in all, and 154 where they are causal)."""


def needed(sizes: GpuTiles) -> int:
    """Registers of a thread without which a config is hopeless: carried tiles, the largest one made, operands kept."""
    base = BASE if sizes.facts.products else BASE // 2
    return base + max(_held(sizes, scope) for scope in range(len(sizes.scopes))) // sizes.threads


def wished(sizes: GpuTiles) -> float:
    """Further registers of a thread: masks, and operands that the compiler reads ahead. It gives way here before it spills."""
    facts = sizes.facts
    if facts.streamed:
        extra = TEMPORARIES * max(here.made for here in sizes.scopes)
        extra += 0 if sizes.target.async_copies else WORDS_AHEAD * sizes.ahead_bytes
    elif facts.products:
        extra = max(_masks(sizes, p) + _read(sizes, p) + _edges(sizes, p) for p in facts.products)
        extra += _columns(sizes) + _added(sizes) + _loaded_beside(sizes)
    else:  # a row stays while another is made of it
        extra = max(_held(sizes, scope) for scope in range(len(sizes.scopes)))
    return extra / sizes.threads


def beside_links(sizes: GpuTiles) -> float:
    """Registers of a thread beside several results that wait for each other, where products are issued ahead and lengths are
    ragged."""
    if sizes.facts.links < 2 or not sizes.target.async_products or sizes.target.tensor_memory_bytes:
        return 0.0
    scores = max(sizes.count((p.m, p.n)) for p in sizes.facts.products if p.link) / sizes.threads
    return BESIDE_LINKS * scores + DEEPER * max(0, sizes.stages - 2)


def likely_beside_links(sizes: GpuTiles) -> float:
    """How many of those there are at once."""
    return beside_links(sizes) * (1.0 if sizes.facts.uneven else EVEN)


def _held(sizes: GpuTiles, scope: Scope) -> int:
    """32-bit words of the tiles alive at once in a scope."""
    here = sizes.scopes[scope]
    products = [p for p in sizes.facts.products if p.scope == scope]
    if not products:
        early = sum(sizes.count(load.axes) for load in sizes.facts.read_again[scope]) if sizes.stages > 1 else 0
        return here.carried + max(here.made, here.alive) + int(EARLY * early)
    links = [p for p in products if p.link]
    results = [replicated(sizes, p) * sizes.count((p.m, p.n)) for p in links]
    ends = [sizes.count((p.m, p.n)) for p in products if not p.carried and not p.link]
    # Where several products wait for each other, the operand made of them takes the place of the first; on its way between
    # warps that share its rows it is there in both forms.
    operand = max(_operands(sizes, p) for p in products)
    both = sum(results) + (max(results) if any(replicated(sizes, p) > 1 for p in links) else 0) if links else 0
    return here.carried + max(both, max(results, default=0) + operand, *ends)


def replicated(sizes: GpuTiles, product: Product) -> int:
    """How many warps do the same rows of a product that is a link of a chain: Triton gives each warp rows of its own there, so
    warps beyond the rows repeat the work of others (AccelerateMatmul, ``warpsPerTileV3``)."""
    target = sizes.target
    alike = target.async_products and not target.tensor_memory_bytes and target.matrix_dtype(product.dtype.name)
    return _sharing(sizes, product) if alike and product.link else 1


def _operands(sizes: GpuTiles, product: Product) -> int:
    """Words of operands that must be in registers: computed ones, widened ones, and what was loaded before the loop."""
    target, size = sizes.target, product.dtype.bytes
    if target.matrix_dtype(product.dtype.name) is None:
        return 0  # vector units take what they have read ahead
    if sizes.is_widened(product):
        return (sizes.lanes(product.m) + sizes.lanes(product.n)) * sizes.lanes(product.k) // 2
    words = 0 if product.loads[0] else sizes.count((product.m, product.k)) * size // 4
    if sizes.is_async(product):
        return words
    words += sum(sizes.bytes(load) for load in product.loads if load and load.scope != product.scope) // 4
    return words * target.fragment_copies * _sharing(sizes, product)


def _read(sizes: GpuTiles, product: Product) -> float:
    """Words of operands on their way through registers to the units that multiply."""
    m, n, k = sizes.lanes(product.m), sizes.lanes(product.n), sizes.lanes(product.k)
    target = sizes.target
    if target.matrix_dtype(product.dtype.name) is None:
        return AHEAD * math.isqrt(m * n * sizes.threads) * k  # the rows and columns of each thread's square
    if sizes.is_widened(product):
        return (WIDENED - 1) * _operands(sizes, product)
    if sizes.is_async(product):
        return 0.0
    # Without a pipeline every operand is read as soon as it is there.
    deep = k * product.dtype.bytes if sizes.stages == 1 else INSTRUCTION_BYTES
    sharing = _sharing(sizes, product)
    mine = m * sharing / sizes.warps + n / sharing  # rows and columns of a warp
    return FRAGMENTS * mine * sizes.warps * deep / 4


def _masks(sizes: GpuTiles, product: Product) -> float:
    """Words that the masks of a product's result hold, in indices and predicates."""
    if product.carried:
        return 0.0
    inside = (a for a in sizes.facts.arithmetic if a.scope == product.scope and a.axes == (product.m, product.n))
    masks = sum(operation in COMPARISONS for a in inside for operation in a.operations)
    if product.scope and any(isinstance(e, ir.Load) for e in ir.walk(sizes.facts.loops[product.scope - 1].stop)):
        masks += 1  # a length that is read at run time leaves padding in the last tile
    return MASK * masks * sizes.count((product.m, product.n))


def _edges(sizes: GpuTiles, product: Product) -> float:
    """Words that a share between bounds takes whose operands pass through registers: its masked steps have some of their own
    (compiled for sm_90: 41 to 51 registers)."""
    loop = sizes.facts.loops[product.scope - 1] if product.scope else None
    bounded = loop is not None and loop.share is not None and not loop.deals_dim
    return EDGES * sizes.threads if bounded and not sizes.is_async(product) else 0.0


def _added(sizes: GpuTiles) -> float:
    """Words that a loop takes which adds to memory, beside what its products do: where operands stay, those of all of them."""
    facts = sizes.facts
    most = 0.0
    for scope in {store.scope for store in facts.stores if store.add}:
        elements = sum(sizes.count(s.axes) for s in facts.stores if s.add and s.scope == scope)
        edges = EDGES_ASYNC if sizes.target.async_products and not ir.groups(facts.kernel) else EDGES
        words: float = edges * sizes.threads if facts.uneven else 0
        if sizes.target.async_products:
            words += ADDED_ASYNC * elements
        else:
            operands = [_operands(sizes, p) for p in facts.products if p.scope == scope]
            words += ADDED * elements + sum(operands) - max(operands, default=0)
        most = max(most, words)
    return most


def _loaded_beside(sizes: GpuTiles) -> float:
    """Words of tiles that are loaded beside results that wait for each other, where products are issued ahead: a mask that is
    added (compiled for sm_90: 120 bytes of 64 x 64 scores of head dim 128 were spilled that no other pressure told of)."""
    if sizes.facts.links < 2 or not sizes.target.async_products:
        return 0.0
    return sum(map(sizes.bytes, sizes.facts.beside_scores)) / 4


def _columns(sizes: GpuTiles) -> float:
    """Words of vectors along the columns of a result: from tensor memory each thread gets one row and all of these."""
    if not sizes.target.tensor_memory_bytes:
        return 0.0
    columns = {p.n for p in sizes.facts.products}
    along = sum(sizes.bytes(load) for load in sizes.facts.loads if len(load.axes) == 1 and load.axes[0] in columns)
    return along / 4 * sizes.target.warp_lanes * sizes.target.mma_warps


def _sharing(sizes: GpuTiles, product: Product) -> int:
    """How many warps work on the same rows of a product."""
    return max(1, sizes.warps * INSTRUCTION_ROWS // sizes.lanes(product.m))
