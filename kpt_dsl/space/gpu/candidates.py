"""The first config of a kernel on a GPU: the best of a few hundred candidates by the model of ``model``.

Tile sizes, warps and pipeline depth are searched, for they trade against each other; the rest follows from them by rule.
"""

import math
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from kpt_dsl import ir
from kpt_dsl.space.config import Config, Value, points
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu import legal, model, registers
from kpt_dsl.space.gpu.model import PARTITIONS
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.instructions import is_long
from kpt_dsl.targets import Target

OPERAND_ROW_BYTES = (128, 256)
"""Bytes of a product's operands along k in one step: a line of shared memory without bank conflicts is 128 B."""
LINK_COLUMNS = 128
"""Most columns of a product whose result goes into another product: wider ones leave no registers for the second."""
LINKS_COLUMNS = 64
"""The same where several results wait for each other: with 128, attention's gradient of the queries took 1.15 to 1.27 times as
long as the best that was tried at head dim 128, and 1.28 to 1.55 times at 64, on an H100."""
DEPTHS = (2, 3, 4)
"""Pipeline depths worth considering, the least first; four are none where several results wait for each other and products
are issued ahead: gradients of head dim 64 took 1.1 to 1.8 times as long, on an H200. Where copies pass through registers, a
chain of products leaves none for them: one stage then (AMD's own attention kernels)."""
LONE_DEPTH = 3
"""Stages of a chain of products that has its core to itself, where they fit: else its second operand arrives late."""
ROOM_FOR_ADDRESSES = 0.8
"""Share of a thread's registers up to which there is room for the addresses of plain copies: attention's gradients at 0.9 spill
with them on sm_90, and do not with descriptors."""
DESCRIPTOR_SECONDS = 20e-6
"""Below this run time, encoding descriptors on the host costs more than they save."""
CROWDED = 0.9
"""Share of a thread's registers from which results that wait for each other, with what is beside them, crowd a gradient's
loops. Where lengths are ragged, 64 queries beside 64 keys then took 1.1 to 2.1 times as long as 32 or 16 do up to length 512,
and a third stage 1.2 to 1.4 times as long as two up to 1000, on an H200 (head dim 64, causal)."""
CROWD = 1.3
"""Share beyond which they do in any loop: 128 queries beside 64 keys took 1.1 to 1.2 times as long as 64 in 4 warps, where the
compiler was asked for 1.4 times a thread's registers, on an H200 (head dim 64, not causal)."""
LONG = 16
"""Steps of a loop from which such tiles are worth it all the same."""
GROUP = 16
"""Rows of tiles that are walked together, so that operands stay in L2."""
TURNS = 4
"""Heads that take turns where their programs differ: enough for the last ones to run to be short, few enough for L2. Where
tiles keep within groups, the last of a head are not its shortest, and turns gain nothing: packed causal attention (64 entries
of 100 to 4000, 32 heads of 128, 8 of keys) ran at 438 TFLOP/s without them and at 401 with 4, 437 with 8, on an H200."""

WAVES = 2
"""From this many tiles a core on, programs that go on to the next tile hide its loads behind the end of the last."""
PART_BYTES = 32 * 1024
"""A tile of this many bytes or more is stored in parts: they take less shared memory from the pipeline, and fewer registers."""

EPILOGUE_SHARE = 3 / 8
"""Of a thread's registers, how much an accumulator may take where its epilogue is not cut in parts: with gelu, 256 x 128 in 8
warps, half of them, spilled on sm_80, 86, 89, 120, gfx1100. Nor, in parts, with the error function: with the
pre-activation beside it, 128 x 128 of 768 to 1024 features took 1.13 to 1.22 times as long in 4 warps as in 8, on an H200."""

CLOSE = 1e-9
"""Relative difference of times that rounding alone may make."""
NEAR = 0.01
"""Relative difference up to which the model does not tell tiles apart. In 78 classes of attention, norms and linear layers,
those that it likes better at both ends together took 0.97 times as long in geometric mean, there and between, on an H200."""


def best(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]]) -> Config | None:
    """The best legal candidate by the model, else the legal config with the smallest values, else None.

    What is looked at next is what takes the least, at least, as long as that is no more than the best one takes: of tiles, then
    of the warps for them. Of tiles and warps that the model cannot tell apart it is those whose times at both ends of a class
    make the least product.
    """
    found: list[tuple[float, tuple[int, int], GpuSizes]] = []
    within, bound = 1 + (CLOSE if facts.least is None else NEAR), math.inf
    waiting = [(model.least_of_tiles(t), (place, 0), t) for place, t in enumerate(_tiles(facts, target, knobs))]
    heapify(waiting)
    while waiting and waiting[0][0] <= bound:
        _, place, sizes = heappop(waiting)
        if not place[1]:
            for turn, threads in enumerate(_threads(sizes, knobs), 1):
                heappush(waiting, (model.at_least(threads), (place[0], turn), threads))
        elif legal.why_bad_threads(sizes) is None:
            timed = ((model.seconds(candidate), place, candidate) for candidate in _candidates(sizes, knobs))
            if (quickest := min(timed, key=lambda one: one[0], default=None)) is not None:
                found.append(quickest)
                bound = min(bound, quickest[0] * within)
    if found:
        near = (one for one in found if one[0] <= bound)
        return Config(min(near, key=lambda one: (one[0] * _at_the_least(one[2]), *one[:2]))[2].config)
    everything = (GpuSizes(facts, target, point) for point in points(knobs))
    return next((Config(sizes.config) for sizes in everything if legal.why_illegal(sizes) is None), None)


def _at_the_least(sizes: GpuSizes) -> float:
    """The seconds at the least extents of a class; 1, which chooses nothing, where these are the only ones."""
    if sizes.facts.least is None:
        return 1.0
    there = GpuSizes(sizes.facts.least, sizes.target, sizes.config)
    return math.inf if legal.why_illegal(there) else model.seconds(there)


def _overfull(sizes: GpuSizes) -> bool:
    """Whether an accumulator leaves no registers for what its epilogue makes of it, all at once."""
    facts = sizes.facts
    in_parts = sizes.target.async_products and int(sizes.config.get("epilogue", 1)) > 1
    if in_parts and not any(is_long(a.operations) for a in facts.arithmetic):
        return False
    carried = [sizes.count(kind.shape) for kinds in facts.carried[-1:] for kind in kinds]
    largest = max(carried, default=0)  # one after the other, the others wait as they are
    worked_on = largest + sum(sizes.count(load.axes) for load in facts.beside_results)
    return (sum(carried) - largest + worked_on / EPILOGUE_SHARE) / sizes.threads > sizes.register_limit


def _is_spare(sizes: GpuSizes, deeper: GpuSizes) -> bool:
    """Whether a deeper pipeline takes room that nobody else wants: causal attention with slopes, head dim 128, took 1433 µs two
    stages deep and 1216 three, packed 7430 and 6415, on an H200. Where scores have more to load, they take it."""
    if sizes.facts.links > 1:
        return deeper.resident == sizes.resident and not _is_too_much(deeper)
    free = sizes.programs <= sizes.target.cores or deeper.resident == sizes.resident
    return free and not sizes.facts.beside_scores


def _is_too_much(sizes: GpuSizes) -> bool:
    """Whether what is beside results that wait for each other crowds registers in which they would fit, for loops as short as
    these, or takes far more than there are."""
    crowded, all_told = CROWDED * sizes.register_limit, sizes.registers + registers.beside_links(sizes)
    short = sizes.registers <= crowded < all_told and max(sizes.steps) < LONG
    return short or all_told > CROWD * sizes.register_limit


def _tiles(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]]) -> Iterator[GpuSizes]:
    """Points of a thinned grid over blocks, larger tiles first; the other knobs have their least values."""
    least = {name: values[0] for name, values in knobs.items()}
    for blocks in points({name: _worth_trying(facts, target, name, knobs[name])[::-1] for name in facts.blocks}):
        yield GpuSizes(facts, target, least | blocks)


def _threads(tiles: GpuSizes, knobs: dict[str, tuple[Value, ...]]) -> Iterator[GpuSizes]:
    """The same tiles for the warps worth trying, fewer first, down to those that keep a core busy."""
    for warps in _worth_trying(tiles.facts, tiles.target, "num_warps", knobs["num_warps"]):
        yield tiles.having({"num_warps": warps})


def _candidates(sizes: GpuSizes, knobs: dict[str, tuple[Value, ...]]) -> Iterator[GpuSizes]:
    """Legal points with the same tiles and warps, the least pipeline first, each completed by rule."""
    searched = {n: _worth_trying(sizes.facts, sizes.target, n, knobs[n]) for n in ("num_stages",) if n in knobs}
    for done in (_completed(sizes.having(depth), knobs) for depth in points(searched)):
        if legal.why_illegal(done) is None and not _overfull(done) and not _is_too_much(done):
            yield done


def _worth_trying(facts: Facts, target: Target, name: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if name == "num_stages":
        if facts.streamed:
            return tuple(depth for depth in (1, *DEPTHS) if depth in values)
        through_registers = not target.async_copies and any(p.chained for p in facts.products)
        shallow = target.async_products and facts.links > 1
        depths = (1,) if through_registers else DEPTHS[:2] if shallow else DEPTHS
        return tuple(depth for depth in depths if depth in values) or values
    if name == "num_warps":
        return tuple(v for v in values if int(v) >= PARTITIONS) + tuple(v for v in values if int(v) < PARTITIONS)
    if any(facts.block_of.get(p.n) == name and not p.carried for p in facts.products):
        most = LINKS_COLUMNS if facts.links > 1 else LINK_COLUMNS
        return tuple(v for v in values if int(v) <= most)
    sizes = [p.dtype.bytes for p in facts.products if facts.block_of.get(p.k) == name and not p.chained]
    if sizes:
        fitting = tuple(v for v in values if int(v) * max(sizes) in OPERAND_ROW_BYTES) or values[-1:]
        return fitting[::-1]  # ties go to the shorter rows
    return values


def _completed(sizes: GpuSizes, knobs: dict[str, tuple[Value, ...]]) -> GpuSizes:
    """The same tiles, warps and stages with the other knobs as they follow from them."""
    facts, target = sizes.facts, sizes.target
    by_rule: dict[str, Value] = {}
    if "group" in knobs and len(facts.grid_tiles) == 1:
        by_rule["group"] = 1 if ir.groups(facts.kernel) else TURNS
    elif "group" in knobs and min(map(sizes.tiles, facts.grid_tiles[-2:])) >= GROUP:
        by_rule["group"] = GROUP
    chain = any(p.chained for p in facts.products)
    lone_chain = chain and sizes.resident == 1
    # Descriptors and deep pipelines are for matrix units that read shared memory; where registers do, they cost more than
    # they save.
    fitting = target.async_products and all(target.matrix_dtype(p.dtype.name) for p in facts.products)
    if chain and fitting and sizes.stages < LONE_DEPTH:
        deeper = sizes.having({"num_stages": LONE_DEPTH})
        if (lone_chain or _is_spare(sizes, deeper)) and deeper.shared_bytes <= target.shared_bytes:
            sizes, by_rule["num_stages"] = deeper, LONE_DEPTH
    if "descriptors" in knobs and fitting and sizes.compulsory_seconds > DESCRIPTOR_SECONDS:
        # Where chained products have registers to spare for addresses, plain copies were seen 3 to 9% faster on an H200: of
        # a lone program, or three stages deep.
        deep = chain and sizes.stages >= LONE_DEPTH and all(map(sizes.is_async, facts.products))
        # So were gradients, however many share a core, of short and of ragged lengths by up to 40%.
        gradient = facts.links > 1 and not facts.beside_scores
        roomy = (lone_chain or deep or gradient) and sizes.pressure <= ROOM_FOR_ADDRESSES
        by_rule["descriptors"] = not roomy
        if "persistent" in knobs and sizes.programs > WAVES * target.cores:
            by_rule["persistent"] = True
        if "epilogue" in knobs and sizes.epilogue_bytes >= PART_BYTES:
            by_rule["epilogue"] = 2
    done = sizes.having(by_rule) if by_rule else sizes
    if by_rule.get("persistent"):
        # Room that no other program takes: four stages of 128 x 256 tiles took 0.2 to 2.4% less time than three, on an H100.
        full = done.having({"num_stages": DEPTHS[-1]})
        if full.shared_bytes <= target.shared_bytes and full.resident == done.resident:
            return full
    return done
