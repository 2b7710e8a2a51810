"""A roofline of a GPU kernel under a config, in seconds: for ranking configs before anything is compiled.

A core runs ``resident`` programs side by side; together they are bound by the matrix unit, the vector unit or the path to L2,
alone by their own chain of latencies. The grid runs in waves over all cores, and device memory bounds the whole.
The constants are round figures from the sources named; a model this small is right about order, not about microseconds.
"""

import math

from kpt_dsl.space.facts import Loops, Product
from kpt_dsl.space.gpu_sizes import GpuSizes

L2_BYTES_PER_CLOCK = 48
"""Bytes a clock from L2 to one core (5120 a clock for the 108 of an A100: "NVIDIA A100 Tensor Core GPU Architecture")."""
MEMORY_LATENCY = 0.8e-6
"""Seconds from a load's issue to its data, under load (published microbenchmarks of Hopper: 0.6 to 1 µs)."""
LAUNCH = 1.0e-6
"""Seconds to start a block, fetch its first tiles and drain its last stores."""
STEP = 60
"""Clocks that a loop step spends on barriers and addresses beside its work."""
OPERAND_ROWS = 16
"""How much sooner operands than arithmetic bound a product: a tile of m rows and n columns reads (m + n) / (m n) operands a flop."""
EXPENSIVE = {"exp": 9, "exp2": 8, "log": 9, "log2": 8, "sqrt": 8, "rsqrt": 8, "div": 8, "sigmoid": 18, "tanh": 20, "erf": 24}
"""Vector instructions an element costs, others one: special functions run at 16 lanes a clock of 128 (CUDA Programming Guide,
"Arithmetic Instructions"), and those without an instruction of their own are sequences."""


def seconds(sizes: GpuSizes) -> float:
    """How long the whole grid takes."""
    target = sizes.target
    tensor, vector, traffic = _tensor(sizes), _vector(sizes), _traffic(sizes)
    memory = _memory(sizes)
    alone = _alone(sizes)
    lane = target.cores * sizes.resident

    def batch(programs: int) -> float:
        """Programs that share one core."""
        return max(programs * max(tensor, vector, traffic, memory), alone)

    full, rest = divmod(sizes.programs, lane)
    run = full * batch(sizes.resident) + (batch(math.ceil(rest / target.cores)) if rest else 0.0)
    return max(run, compulsory_seconds(sizes))


def compulsory_seconds(sizes: GpuSizes) -> float:
    """The least that the products and the bytes of every tensor can take."""
    facts, target = sizes.facts, sizes.target
    products = sum(
        2 * sizes.count((p.m, p.n, p.k)) * sizes.steps(p.loops) / target.peak(p.dtype.name) for p in facts.products
    )
    return max(_moved_once(sizes) / target.bandwidth_bytes_per_s, products * sizes.programs)


def _moved_once(sizes: GpuSizes) -> int:
    """Bytes of every tensor once."""
    facts = sizes.facts
    return sum(math.prod(facts.dims[d] for d in t.dims) * t.dtype.bytes for t in facts.kernel.tensors)


def _tensor(sizes: GpuSizes) -> float:
    """Seconds of a program in the matrix unit."""
    return sum(_product(sizes, p) * sizes.steps(p.loops) for p in sizes.facts.products)


def _product(sizes: GpuSizes, product: Product) -> float:
    m, n, k = sizes.lanes(product.m), sizes.lanes(product.n), sizes.lanes(product.k)
    target = sizes.target
    balance = m * n / (m + n)
    efficiency = balance / (balance + OPERAND_ROWS)
    if m < target.mma_rows:
        efficiency *= m / target.mma_rows if target.mma_warps == 1 else 0.5  # the instructions for smaller tiles are slower
    return 2 * m * n * k / (target.peak(product.dtype.name) / target.cores) / efficiency


def _vector(sizes: GpuSizes) -> float:
    """Seconds of a program in the vector unit."""
    work = sum(sizes.steps(a.loops) * sizes.count(a.axes) * EXPENSIVE.get(a.op, 1) for a in sizes.facts.arithmetic)
    rate = sizes.target.vector_flops_per_s / 2 / sizes.target.cores
    return work / rate


def _traffic(sizes: GpuSizes) -> float:
    """Seconds of a program on the path between a core and L2."""
    moved = sum(sizes.steps(a.loops) * sizes.bytes(a) for a in (*sizes.facts.loads, *sizes.facts.stores))
    return moved / (L2_BYTES_PER_CLOCK * sizes.target.clock_hz)


def _memory(sizes: GpuSizes) -> float:
    """Seconds that a program's share of the compulsory bytes takes a core."""
    return _moved_once(sizes) / sizes.programs / (sizes.target.bandwidth_bytes_per_s / sizes.target.cores)


def _alone(sizes: GpuSizes) -> float:
    """Seconds of a program that has a core to itself: products and vector work of one step wait for each other."""
    inside = sum(_step(sizes, loops) * sizes.steps(loops) for loops in sizes.facts.loops)
    start = LAUNCH / (3 if sizes.config.get("persistent") else 1)
    return start + _step(sizes, ()) + inside


def _step(sizes: GpuSizes, loops: Loops) -> float:
    """Seconds of one step of a loop, or of what is outside all loops."""
    facts = sizes.facts
    tensor = sum(_product(sizes, p) for p in facts.products if p.loops == loops)
    rate = sizes.target.vector_flops_per_s / 2 / sizes.target.cores
    vector = sum(sizes.count(a.axes) * EXPENSIVE.get(a.op, 1) for a in facts.arithmetic if a.loops == loops) / rate
    moved = sum(sizes.bytes(a) for a in (*facts.loads, *facts.stores) if a.loops == loops)
    fetch = moved / (L2_BYTES_PER_CLOCK * sizes.target.clock_hz)
    # Loads of later steps are under way while this one computes, as far as the pipeline is deep.
    wait = MEMORY_LATENCY / max(1, sizes.stages - 1) if loops else MEMORY_LATENCY
    return max(tensor + vector, fetch, wait) + STEP / sizes.target.clock_hz
