"""How often the parts of a Pallas kernel run and how many bytes its pipeline moves: what a static estimate of its time needs.

Bounds that only the run knows (a window given as an argument, lengths in a tensor) count as absent.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod

from kpt_dsl import arithmetic, ir
from kpt_dsl.dtypes import f16, f32, i32
from kpt_dsl.emit.pallas.blocks import Block, Blocks
from kpt_dsl.emit.pallas.plan import LANES, STEP, Phase, Plan
from kpt_dsl.ir import Axis, Expr


def count(plan: Plan, loop: ir.Each | ir.Tile) -> int:
    """How many values a parallel loop's variable has."""
    return -(-plan.dims[loop.dim] // (plan.lanes[loop.dim] if isinstance(loop, ir.Tile) else 1))


def programs(plan: Plan) -> int:
    """How many programs the grid has."""
    return prod(count(plan, loop) for loop in plan.kernel.grid)


def visits(plan: Plan, phase: Phase, start: Expr, stop: Expr, at_once: int = 1) -> int:
    """How many tiles of a loop, or runs of as many as are taken at once, touch the indices [start, stop), over all programs."""
    of = _programs(plan, (start, stop))
    return sum(repeats * len(_touched(plan, phase, start, stop, tiles, at_once)) for tiles, repeats in of)


def in_steps(plan: Plan, phase: Phase, clear: tuple[Expr, Expr]) -> tuple[int, tuple[int, ...]]:
    """Of a loop whose steps go through several tiles: how many steps lie in ``clear`` bounds, at which tiles begin, and how
    often the first tile, the second and so on are visited in other steps; over all programs."""
    steps, others = 0, [0] * plan.unroll
    loop = phase.loop
    for tiles, repeats in _programs(plan, (loop.start, loop.stop, *clear)):
        found = _touched(plan, phase, *clear, tiles)
        whole = range(-(-found.start // plan.unroll), found.stop // plan.unroll)
        steps += repeats * len(whole)
        for tile in _touched(plan, phase, loop.start, loop.stop, tiles):
            others[tile % plan.unroll] += repeats * (tile // plan.unroll not in whole)
    return steps, tuple(others)


def _touched(
    plan: Plan, phase: Phase, start: Expr, stop: Expr, tiles: Mapping[str, int], at_once: int = 1
) -> range:
    """The tiles of a loop, or runs of them, that touch the indices [start, stop) in the program that has these tiles."""
    lanes, extent = plan.lanes[phase.dim] * at_once if phase.tiled else 1, plan.dims[phase.dim]
    low = max(0, _known(_value(plan, start, tiles), 0))
    high = min(extent, _known(_value(plan, stop, tiles), extent))
    return range(low // lanes, -(-high // lanes)) if low < high else range(0)


def moved_bytes(plan: Plan, blocks: Blocks) -> int:
    """Bytes that the pipeline copies between HBM and VMEM: a block is copied again whenever its place changes."""
    return sum(_moves(plan, blocks, b) * _size(plan, b) for b in (*blocks.read, *blocks.written))


def flops(plan: Plan) -> tuple[tuple[str, float], ...]:
    """Operations of all products by the dtype of their operands."""
    found: dict[str, float] = {}
    for segment in plan.segments:
        loop = segment.phase.loop if segment.phase else None
        runs = visits(plan, segment.phase, loop.start, loop.stop) if segment.phase and loop else programs(plan)
        for dot in (e for e in ir.every_expr(segment.body) if isinstance(e, ir.Dot)):
            sides = (*dot.a.type.shape, dot.b.type.shape[1])
            dtype = dot.a.type.dtype.name
            found[dtype] = found.get(dtype, 0.0) + 2.0 * runs * prod(_length(plan, axis) for axis in sides)
    return tuple(found.items())


def _length(plan: Plan, axis: Axis) -> int:
    if axis == ir.UNIT or axis.tile is None:
        return 1 if axis == ir.UNIT else plan.dims[axis.dim]
    return plan.lanes[axis.dim] * (plan.unroll if axis.tile == STEP else 1)


def _size(plan: Plan, block: Block) -> int:
    """Bytes of a block in HBM, where rows are filled up to whole registers: those of a column have one element each."""
    held = f32 if block.tensor.dtype == f16 else block.tensor.dtype
    parts = 1 if block.parts is None else plan.dims[block.tensor.dims[block.parts]]
    *rows, width = (_length(plan, axis) for axis in block.axes or (ir.UNIT,))
    if len(block.axes) == 1 and plan.stored(block.axes[0]) == "column":
        rows, width = [width], 1
    return held.bytes * parts * prod(rows) * -(-width // LANES) * LANES


def _moves(plan: Plan, blocks: Blocks, block: Block) -> int:
    stepping = {a.dim for a in block.axes if a.tile == STEP}
    indices = {e.name for i in block.index if isinstance(i, Expr) for e in ir.walk(i) if isinstance(e, ir.Index)}
    phases = [p for p in (plan.phases[i] for i in blocks.phases[block.name]) if p.dim in stepping or p.name in indices]
    if any(p.steps > 1 for p in phases):
        return sum(visits(plan, p, p.loop.start, p.loop.stop, plan.unroll) for p in phases)
    named = {a.tile for a in block.axes}
    for node in (e for i in block.index if isinstance(i, Expr) for e in ir.walk(i)):
        match node:
            case ir.Index(name) | ir.Start(name) | ir.Stop(name):
                named.add(name)
    depends = [i for i, loop in enumerate(plan.kernel.grid) if loop.name in named]
    return prod(count(plan, loop) for loop in plan.kernel.grid[: max(depends, default=-1) + 1])


def _programs(plan: Plan, bounds: tuple[Expr, ...]) -> Iterator[tuple[dict[str, int], int]]:
    """The numbers of the tiles and the indices that bounds depend on, each combination with how many programs share it."""
    nodes = [e for b in bounds for e in ir.walk(plan.resolved(b))]
    inside = {e.tile for e in nodes if isinstance(e, ir.Start | ir.Stop)} | {
        e.name for e in nodes if isinstance(e, ir.Index)
    }
    varying = [loop for loop in plan.kernel.grid if loop.name in inside]
    shared = prod(count(plan, loop) for loop in plan.kernel.grid if loop not in varying)
    for numbers in product(*(range(count(plan, loop)) for loop in varying)):
        yield dict(zip((loop.name for loop in varying), numbers, strict=True)), shared


def _known(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _value(plan: Plan, node: Expr, tiles: Mapping[str, int]) -> int | None:
    """An integer scalar in the program that has these tiles, None where only the run knows it."""
    match node:
        case ir.Const(value):
            return int(value)
        case ir.Size(dim):
            return plan.dims[dim]
        case ir.Var(name):
            return _value(plan, plan.definitions[name], tiles)
        case ir.Index(name):
            return tiles.get(name)
        case ir.Block(tile):
            return plan.lanes[plan.tiles[tile].dim]
        case ir.Start(tile) if tile in tiles:
            return tiles[tile] * plan.lanes[plan.tiles[tile].dim]
        case ir.Stop(tile) if tile in tiles:
            dim = plan.tiles[tile].dim
            return min(plan.dims[dim], (tiles[tile] + 1) * plan.lanes[dim])
        case ir.Binary(op, a, b) if node.type.dtype == i32:
            x, y = _value(plan, a, tiles), _value(plan, b, tiles)
            if x is None or y is None:
                return (y if x is None else x) if op in ("max", "min") else None
            found = arithmetic.evaluate(op, x, y)
            return None if found is None else int(found)
    return None
