"""A roofline of a GPU kernel under a config, in seconds: for ranking configs before anything is compiled.

A core runs ``resident`` programs side by side; together they are bound by the matrix unit, the vector unit or the path to L2,
alone by their own chain of latencies. The grid runs in waves over all cores, and device memory bounds the whole.
The constants are round figures from the sources named; a model this small is right about order, not about microseconds.
"""

import math
from typing import NamedTuple

from kpt_dsl.space.facts import Product, Scope
from kpt_dsl.space.gpu import registers
from kpt_dsl.space.gpu.sizes import GpuSizes

L2_BYTES_PER_CLOCK = 56
"""Bytes a clock from L2 to one core: fitted; products of 128 x 128 tiles, two a core, were seen to read 46 on an H200."""
L2_SHARE = 0.5
"""Of the L2 cache, what holds for tiles that are read again; the rest is passed through by writes and other programs."""
MEMORY_LATENCY = 0.6e-6
"""Seconds from a load's issue to its data (published microbenchmarks of Hopper: 0.2 µs from L2, 0.8 µs from busy memory)."""
LAUNCH = 0.3e-6
"""Seconds to start a block and to drain its last stores; a persistent block does so while it computes."""
STEP = 30
"""Clocks that a loop step spends on barriers and addresses for each line of its operands."""
LINE_BYTES = 128
"""Bytes of an operand's row that one copy brings to shared memory without bank conflicts."""
OPERAND_ROWS = 16
"""How much operands hold up a product: the matrix unit reads (m + n) / (m n) operands a flop."""
PARTITIONS = 4
"""Parts of a core that issue instructions on their own, each with its matrix unit."""
COMPANY = 0.1
"""Of asynchronous products and vector work, how much of the lesser one each further program on a core hides."""
FELLOWS = 1.5
"""Of how many programs the warps of one are worth in a chain: packed causal attention of head dim 128 took 6896 µs in one of 8
warps and 6415 in two of 4, with slopes 1354 and 1216, gradients over 2048 keys of 64 a quarter more, on an H200."""
OVERLAP = 0.5
"""How much of it is never hidden."""
COMFORTABLE_PRESSURE, COMFORTABLE_AHEAD = 0.95, 0.975
"""Shares of a thread's registers in use from which the compiler is likely to run out; the second where products are issued
ahead and nothing is added to memory. Attention's gradient of the keys took 928 µs at 0.973, and 1198 in tiles half as wide, at
0.82 (head dim 128, 4096 keys, H200)."""
COMFORTABLE_SHARED = 0.95
"""Share of shared memory from which a kernel may not fit after all whose loops are split where masks end."""
PRESSURE_COST = 3
"""How much slower a kernel gets for each whole share of registers beyond that."""
THREAD_BYTES = 32
"""Bytes of a tile that a thread best holds: two of the widest loads (16 B) under way at once."""
REDUCTION = 80
"""Clocks that the warps of a program wait for each other at a sum."""
EXCHANGE = 2.4
"""Clocks that a program waits for each element that its warps pass each other to sum down columns: layer norm backward 32768 x
1024, four rows at a time, took 202 us in 8 warps and 80 in 4, which need not; RMS norm, with one sum less, 114, on an H100."""
PASSED = 3.7
"""Clocks that no other program of the core has for each of them, where all that is read are tiles (norms read more): the
gradient through an activation with the bias's, 8192 x 3072, took 97 µs in 8 warps of 128 columns, 62 in 4, and 49 to 61 in one,
which passes none, on an H200. The gradients of norms did not get quicker by what this would choose."""
WIDE_LOAD = 16
"""Bytes of the widest load of a thread."""
HOLDING_COST = 0.05
"""How much slower a kernel gets for each doubling or halving of that."""
STEP_BYTES = 64 * 1024
"""Bytes that a step of chained products best reads where device memory bounds them."""
SMALL_STEP = 0.0125
"""How much slower such a kernel gets for each halving of them: one query over the up to 8192 keys that each of 16 entries has
took 85 µs in tiles of 32 keys, 74 in tiles of 64, on an H200."""
CHAINED = 0.4e-6
"""Seconds of a step whose products wait for each other and are too small to be issued ahead: one query over 8192 keys, 9 x 8
heads wide, took 115, 85 µs in tiles of 64, 128 keys however deep the pipeline, on an H200."""
ROWS_AHEAD = 2
"""Steps that a stream is best fetched ahead."""
FURTHER_AHEAD = 0.05
"""How much slower a stream gets for each step more: gradients of norms, 1024 to 8192 columns wide, took 1 to 3% longer three
steps ahead than two, on an H100."""
INTERFERENCE = 0.15
"""Of two paths that are busy at once, how much of the lesser one's time is added to the other's."""


def seconds(sizes: GpuSizes) -> float:
    """How long the whole grid takes, with small handicaps for what a roofline does not see.

    Those are registers close to the limit, which the compiler then spills, and, without products, threads that hold more or
    less of a tile than they load at once.
    """
    ahead = sizes.target.async_products and not any(store.add for store in sizes.facts.stores)
    comfortable = COMFORTABLE_AHEAD if ahead else COMFORTABLE_PRESSURE
    crowded = PRESSURE_COST * max(0.0, sizes.pressure - comfortable)
    if sizes.facts.uneven and sizes.shared_bytes > COMFORTABLE_SHARED * sizes.target.shared_bytes:
        crowded += 1
    return _roofline(sizes) * (1 + crowded + _held(sizes))


def least_of_tiles(sizes: GpuSizes) -> float:
    """No more than the seconds of any config with these tiles, whose pipeline is as deep or deeper; more quickly still."""
    steps = [(_paths(sizes, scope), times) for scope, times in enumerate(sizes.steps)]
    vector, traffic = (sum([step[part] * times for step, times in steps]) for part in range(2))
    return _both(_rounds(sizes) * _both(vector, traffic), sizes.compulsory_seconds)


def at_least(sizes: GpuSizes) -> float:
    """No more than the seconds of any config with these tiles and warps, whose pipeline is as deep or deeper, whatever its
    other knobs are; quickly."""
    steps, (tensor, vector, traffic) = _program(sizes)
    alone, late = sum(step.at_least * times for step, times in steps), 0.5 if sizes.facts.uneven else 0.0
    each = _both(_side_by_side(sizes, tensor, vector, sizes.most_resident), traffic)
    run = max(each * (_rounds(sizes) + late), alone * (1 + late))
    return _both(run, sizes.compulsory_seconds) * (1 + _held(sizes))


def _rounds(sizes: GpuSizes) -> float:
    """How many programs a core runs, the one that has most; where they end at different times, on average."""
    rounds = sizes.programs / sizes.target.cores
    return rounds if sizes.facts.uneven else math.ceil(rounds)


def _program(sizes: GpuSizes) -> "tuple[list[tuple[_Step, float]], list[float]]":
    """The steps of a program, and how often it takes them; the seconds that both units and the path to L2 are busy."""
    steps = [(_Step.of(sizes, scope), times) for scope, times in enumerate(sizes.steps)]
    return steps, [sum([step[part] * times for step, times in steps]) for part in range(3)]


def _held(sizes: GpuSizes) -> float:
    """How much threads lose that hold more or less of a tile than they load at once, or load too far ahead."""
    if sizes.facts.products:
        return 0.0
    widest = max((sizes.bytes(load) for load in sizes.facts.loads), default=0)
    held = HOLDING_COST * abs(math.log2(max(1, widest) / sizes.threads / THREAD_BYTES))
    return held + FURTHER_AHEAD * max(0, sizes.stages - 1 - ROWS_AHEAD)


def _roofline(sizes: GpuSizes) -> float:
    target = sizes.target
    steps, (tensor, vector, traffic) = _program(sizes)
    fill = LAUNCH + sum(MEMORY_LATENCY for step, _ in steps if step.is_pipelined)
    alone = 0.0 if sizes.config.get("persistent") else fill
    alone += sum(step.alone(sizes) * times for step, times in steps)

    def batch(programs: int) -> float:
        """Programs that share one core."""
        busy = _side_by_side(sizes, programs * tensor, programs * vector, programs)
        return max(_both(busy, programs * traffic), alone)

    at_once = target.cores * sizes.resident
    full, rest = divmod(sizes.programs, at_once)
    if sizes.facts.uneven:  # programs end at different times, and the next begin at once; the last ones end late
        most = min(sizes.resident, math.ceil(sizes.programs / target.cores))
        run = (max(1.0, sizes.programs / at_once) + 0.5) * batch(most)
    else:
        run = full * batch(sizes.resident) + (batch(math.ceil(rest / target.cores)) if rest else 0.0)
    memory = _memory_seconds(sizes)
    if sizes.facts.streamed and sizes.stages == 1:  # only the core's other programs load while one computes
        memory += run / sizes.resident
    if sizes.facts.links == 1 and memory > run:
        read = max((step.moved for step, _ in steps if step.is_pipelined), default=0)
        memory *= 1 + SMALL_STEP * max(0.0, math.log2(STEP_BYTES / max(1, read)))
    return _both(run, memory)


def _memory_seconds(sizes: GpuSizes) -> float:
    """Seconds of traffic with device memory: every tensor once, and what programs read again after L2 has lost it."""
    bytes_once: dict[str, float] = {}
    total = 0.0
    streamed: set[str] = set()
    for load in sizes.facts.loads:
        mine = sizes.bytes(load) * sizes.steps[load.scope]
        if sizes.facts.shared_out(load.scope):  # what such a loop reads again it has read in the same step
            mine *= load.tensor.name not in streamed
            streamed.add(load.tensor.name)
        total += mine
        bytes_once[load.tensor.name] = max(mine, bytes_once.get(load.tensor.name, 0.0))
    once = sum(bytes_once.values())
    lost = sizes.target.cores * sizes.resident * once > L2_SHARE * sizes.target.l2_bytes
    again = (total - once) * sizes.programs if lost else 0.0
    return sizes.compulsory_seconds + again / sizes.target.bandwidth_bytes_per_s


class _Step(NamedTuple):
    """Seconds of one step of a loop, or of what is outside all loops, on a core of its own."""

    tensor: float
    """In the matrix unit."""
    vector: float
    fetch: float
    """On the path between the core and L2."""
    busy: float
    """In both units, when no other program shares the core, sums included."""
    moved: int
    """Bytes that are read and written."""
    around: float
    """On barriers and addresses."""
    is_stream: bool
    is_pipelined: bool

    @staticmethod
    def of(sizes: GpuSizes, scope: Scope) -> "_Step":
        facts, target = sizes.facts, sizes.target
        products = [p for p in facts.products if p.scope == scope]
        tensor = sum([product_seconds(sizes, p) for p in products])
        vector, fetch, moved = _paths(sizes, scope)
        streams = facts.shared_out(scope)
        waits, exchanged = _sums(sizes, scope) if scope else (0, 0)
        busy = _side_by_side(sizes, tensor, vector, 1) * PARTITIONS / min(PARTITIONS, sizes.warps)
        busy += (waits * REDUCTION + exchanged * EXCHANGE) / target.clock_hz
        if exchanged and all(len(load.axes) > 1 for load in facts.loads):
            vector += exchanged * PASSED / target.clock_hz
        if sum(p.link for p in products) == 1 and any(p.chained and sizes.lanes(p.m) < target.mma_rows for p in products):
            busy += CHAINED
        lines = max([math.ceil(sizes.lanes(p.k) * p.dtype.bytes / LINE_BYTES) for p in products], default=1)
        around = lines * STEP / target.clock_hz
        return _Step(tensor, vector, fetch, busy, moved, around, streams, streams or bool(products and scope))

    def alone(self, sizes: GpuSizes) -> float:
        """Seconds when no other program shares the core: products, vector work and loads of a step wait for each other."""
        # A stream's rows come from device memory, of whose bandwidth each program has its share.
        share = sizes.target.bandwidth_bytes_per_s / sizes.target.cores / sizes.resident
        arrive = MEMORY_LATENCY + (self.moved / share if self.is_stream else self.fetch) if self.moved else 0.0
        ahead = sizes.stages - 1 if self.is_pipelined else 0
        return (max(self.busy, self.fetch, arrive / ahead) if ahead else self.busy + arrive) + self.around

    @property
    def at_least(self) -> float:
        """Of that, what is left in a pipeline of any depth."""
        arrive = MEMORY_LATENCY + self.fetch if self.moved and not self.is_pipelined else 0.0
        return self.busy + arrive + self.around


def _paths(sizes: GpuSizes, scope: Scope) -> tuple[float, float, int]:
    """The seconds that vector work and traffic with L2 take in a step, whoever works on its tiles, and the bytes of that."""
    here, target = sizes.scopes[scope], sizes.target
    moved = here.moved
    if sizes.stages == 1:  # what was read a moment ago is still in the core's own cache
        moved -= sum(map(sizes.bytes, sizes.facts.read_again[scope]))
    vector = here.work / (target.vector_flops_per_s / 2 / target.cores)
    return vector, moved / (L2_BYTES_PER_CLOCK * target.clock_hz), moved


def _sums(sizes: GpuSizes, scope: Scope) -> tuple[int, int]:
    """How often the warps of a program wait for each other in a step of a loop, and how many elements they exchange.

    Warps lie along rows as far as these reach, a thread with one wide load; sums down columns cross those that are left over.
    Of three axes the first takes them before the second does: adding up two parts of 128 columns at a time took 2 to 3 times
    as long as one, on an H200.
    """
    facts, waits, exchanged = sizes.facts, 0, 0
    for node in facts.reductions[scope]:
        shape = node.x.type.shape
        along = max(1, node.axis) if facts.shared_out(scope) else node.axis + 1
        if not 0 < along < len(shape):
            continue
        loaded = (load.tensor.dtype.bytes for load in facts.loads if load.scope == scope)
        size = max(loaded, default=node.x.type.dtype.bytes)
        columns = sizes.count(shape[along:])
        row = sizes.count(shape[along:] if node.axis == along else shape[-1:]) * size
        across = max(1, row // (sizes.target.warp_lanes * WIDE_LOAD))
        if node.axis == along:
            waits += across > 1
        elif sizes.warps > across and sizes.lanes(shape[node.axis]) > 1:
            waits += 2
            exchanged += columns * sizes.warps // across
    return waits, exchanged


def _both(a: float, b: float) -> float:
    """Two things that go on at once and get in each other's way a little."""
    return max(a, b) + INTERFERENCE * min(a, b)


def _side_by_side(sizes: GpuSizes, tensor: float, vector: float, programs: int) -> float:
    """Matrix and vector work overlap where the core has other warps to turn to.

    Warps of one program wait for the same asynchronous products and fall in step, so it takes several programs: on an H200,
    attention of head dim 64 runs 1.5 times as fast in three of 4 warps a core as in one of 8.
    """
    if sizes.target.async_products:
        many = 1.0 if sizes.warps <= PARTITIONS else FELLOWS if sizes.facts.links else 2.0
        company = max(programs, many) - 1
        exposed = max(OVERLAP, 1 - COMPANY * company)
    else:
        exposed = 1.0 if programs * sizes.warps <= PARTITIONS else OVERLAP
    return max(tensor, vector) + exposed * min(tensor, vector)


def product_seconds(sizes: GpuSizes, product: Product) -> float:
    """Seconds of one product in the matrix unit."""
    m, n = sizes.lanes(product.m), sizes.lanes(product.n)
    target = sizes.target
    rows, times = m, 1
    if target.async_products:
        # An instruction reads its operands from shared memory for its own rows; warps that are left over share the columns, or,
        # in a link of a chain, do the same as others.
        rows = min(m, target.mma_rows)
        times = registers.replicated(sizes, product)
        if not target.tensor_memory_bytes and times == 1:
            n = max(1, n // max(1, sizes.warps // target.mma_warps // max(1, m // target.mma_rows)))
    balance = rows * n / (rows + n)
    efficiency = balance / (balance + OPERAND_ROWS)
    if m < target.mma_rows:
        efficiency *= 0.5  # only older, slower instructions have tiles this small
    flops = 2 * sizes.count((product.m, product.n, product.k)) * times
    return flops / (target.peak(product.dtype.name) / target.cores) / efficiency
