"""Scheduling: what a producer and several consumers do when a kernel's loop is shared out among warps.

A loop that loads tiles and multiplies them is cut in two. The *producer* loads what products read, a ring of slots ahead; the
*consumers* multiply and do the rest. Where one product feeds another of the same loop (attention), the first one of the next
step is issued before the work between the two, so that the matrix unit runs while exponentials are computed
(Shah et al. 2024, FlashAttention-3, arXiv:2407.08608, section 3).

The pass says what goes where and knows no machine; ``why_not`` gives the reason where a kernel has no such form.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.dtypes import bool_, i32
from kpt_dsl.passes import indices
from kpt_dsl.passes.padding import whole
from kpt_dsl.passes.split import split_masks


@dataclass(frozen=True)
class Operand:
    """A tile that a product reads from shared memory, as it was loaded or ``transposed``."""

    load: ir.Load
    transposed: bool


@dataclass(frozen=True)
class Step:
    """One way through the loop's body.

    ``link``: the product that feeds another one, None where there is no such chain. ``between``: all statements that are no
    product. ``product``: the one that accumulates; ``addend`` is what it adds to.
    """

    link: ir.Assign | None
    between: tuple[ir.Stmt, ...]
    product: ir.Assign
    addend: ir.Expr


@dataclass(frozen=True)
class Part:
    """A run of steps that need the same masks, over the tiles from ``loop.start`` up to ``loop.stop``."""

    loop: ir.For
    step: Step


@dataclass(frozen=True)
class Pipeline:
    """A kernel in the form of a producer and consumers.

    ``scalars``: ahead of the loop, for everybody, bounds included. ``setup``: tiles that consumers begin with. ``held``: the
    tile that the link reads in each step. ``loop``: the whole loop, with ``masked`` as a step that is right for any tile of it;
    ``parts``: the same tiles, in order, with the masks that each needs. ``after``: what consumers do at the end.
    ``foreign``: whether what lies beyond the loop's bounds is another's, which may be NaN and is to enter no product.
    """

    scalars: tuple[ir.Assign, ...]
    setup: tuple[ir.Assign, ...]
    held: ir.Assign | None
    loop: ir.For
    masked: Step
    parts: tuple[Part, ...]
    after: tuple[ir.Stmt, ...]
    foreign: bool

    @property
    def link(self) -> tuple[Operand, ...]:
        """What the producer loads for the link, in each step, and for the work on its result."""
        return () if self.masked.link is None else (*_ring(_dot(self.masked.link)), *self.beside)

    @cached_property
    def beside(self) -> tuple[Operand, ...]:
        """The tiles that the work between products reads beside them."""
        found = (e for stmt in self.masked.between for top in ir.expressions(stmt) for e in ir.walk(top))
        loads = {(e.tensor, e.index): e for e in found if isinstance(e, ir.Load) and len(e.type.shape) > 1}
        return tuple(Operand(e, transposed=False) for e in loads.values())

    @property
    def product(self) -> tuple[Operand, ...]:
        """What the producer loads for the product that accumulates, in each step."""
        return tuple(_ring(_dot(self.masked.product)))


def hidden(kernel: ir.Kernel) -> ir.Kernel:
    """``kernel``, before it is guarded: where a loop is counted from its start, products have minus infinity for what lies
    beyond it, where they may have anything; of that a softmax makes zeros without another mask."""
    return replace(kernel, body=tuple(replace(s, body=_hidden(s)) if isinstance(s, ir.For) else s for s in kernel.body))


def _hidden(loop: ir.For) -> tuple[ir.Stmt, ...]:
    body: list[ir.Stmt] = []
    for stmt in loop.body:
        body.append(stmt)
        if not loop.at_start or not isinstance(stmt, ir.Assign) or not isinstance(stmt.value, ir.Dot):
            continue
        result = ir.Var(stmt.name, type=stmt.value.type)
        if (axis := result.type.shape[1]) == loop.tile.axis:
            lanes = ir.Lanes(axis, type=ir.Type(i32, (axis,)))
            inside = ir.Binary("lt", lanes, loop.stop, type=ir.Type(bool_, (axis,)))
            spread = ir.Expand(inside, 0, type=ir.Type(bool_, (ir.UNIT, axis)))
            nothing = ir.Const(-math.inf, type=ir.Type(result.type.dtype))
            body.append(ir.Assign(stmt.name, ir.Where(spread, result, nothing, type=result.type)))
    return tuple(body)


class Unfit(Exception):
    """A kernel cannot be cut into producer and consumers; the message says why."""


def why_not(kernel: ir.Kernel) -> str | None:
    """Why a guarded kernel has no pipelined form, or None."""
    try:
        pipeline(kernel)
    except Unfit as reason:
        return str(reason)
    return None


def counts(loop: ir.For) -> bool:
    """Whether a loop's body asks how many elements its tile has, or came before it."""
    return any(isinstance(e, ir.Count | ir.Before) and e.tile == loop.over.name for e in ir.every_expr(loop.body))


def pipeline(kernel: ir.Kernel) -> Pipeline:
    """The pipelined form of a guarded kernel (``passes.padding``). Raises Unfit."""
    loops = [s for s in kernel.body if isinstance(s, ir.For)]
    if len(loops) != 1 or any(isinstance(s, ir.For) for s in loops[0].body):
        raise Unfit("it has not exactly one loop")
    loop = loops[0]
    if not isinstance(loop.over, ir.Tile):
        raise Unfit("its loop goes through single indices")
    if loop.start != ir.scalar(0) and counts(loop):
        raise Unfit("its loop has a start of its own and counts elements")
    if ir.added(kernel):
        raise Unfit("it adds to an output")
    scalars = [s.value for s in kernel.body if isinstance(s, ir.Assign) and not s.value.type.shape]
    loaded = any(isinstance(e, ir.Load) for x in (*scalars, loop.start, loop.stop) for e in ir.walk(x))
    if loaded and not (ir.groups(kernel) and loop.at_start):
        raise Unfit("a scalar is loaded: what lies beyond bounds that depend on it may not enter a product")
    if any(isinstance(e, ir.Gather) for e in ir.every_expr(kernel.body)):
        raise Unfit("it gathers: copies move blocks, and what indices tell passes through registers")
    if indices.checked(kernel):
        raise Unfit("an index may be of no element")
    masked = _step(loop.body)
    rows = {masked.link.value.type.shape[0].tile} if masked.link else set()
    if not rows.issuperset(ir.groups(kernel)):
        raise Unfit("its tiles keep within groups")
    if masked.link is None and not whole(loop):
        raise Unfit("its loop has bounds of its own: what lies outside them, inside a tile, would be multiplied too")
    before = [_where_there(s, loop, kernel) for s in _before(kernel.body)]
    held = _held(masked, before)
    split = split_masks(kernel).body
    bounds = [s for s in split if isinstance(s, ir.Assign) and s not in kernel.body]
    found = Pipeline(
        scalars=(*(s for s in before if not s.value.type.shape), *bounds),
        setup=tuple(s for s in before if s.value.type.shape and s is not held),
        held=held,
        loop=loop,
        masked=masked,
        parts=tuple(Part(s, _step(s.body)) for s in split if isinstance(s, ir.For)),
        after=kernel.body[kernel.body.index(loop) + 1 :],
        foreign=loaded,
    )
    _check(kernel, found)
    return found


def _before(body: tuple[ir.Stmt, ...]) -> list[ir.Assign]:
    found = []
    for stmt in body:
        if isinstance(stmt, ir.For):
            break
        if not isinstance(stmt, ir.Assign):
            raise Unfit("it stores before its loop")
        found.append(stmt)
    return found


def _where_there(stmt: ir.Assign, loop: ir.For, kernel: ir.Kernel) -> ir.Assign:
    """Of the places for tiles of groups, those that hold none end their loop before it begins."""
    if loop.at_start and isinstance(loop.stop, ir.Var) and stmt.name == loop.stop.name:
        for tile in ir.groups(kernel):
            there = ir.Binary("lt", *(end(tile, type=stmt.value.type) for end in (ir.Start, ir.Stop)), type=ir.Type(bool_))
            stmt = replace(stmt, value=ir.Where(there, stmt.value, ir.scalar(0), type=stmt.value.type))
    return stmt


def _step(body: tuple[ir.Stmt, ...]) -> Step:
    products = [s for s in body if isinstance(s, ir.Assign) and isinstance(s.value, ir.Dot)]
    dots = [e for e in ir.every_expr(body) if isinstance(e, ir.Dot)]
    if len(products) != len(dots) or len(products) not in (1, 2) or not all(isinstance(s, ir.Assign) for s in body):
        raise Unfit("its loop is not made of one or two products and of statements that assign")
    *links, product = products
    link = links[0] if links else None
    dot = _dot(product)
    if dot.acc is None or product.name not in _names(dot.acc):
        raise Unfit("its last product does not accumulate")
    if link is not None and _dot(link).acc is not None:
        raise Unfit("its first product accumulates too")
    between = tuple(s for s in body if s is not product and s is not link)
    step = Step(link, between, product, dot.acc)
    _check_order(body, step)
    return step


def _check_order(body: tuple[ir.Stmt, ...], step: Step) -> None:
    """Raises Unfit where statements cannot move: the link to the front of its step, the accumulation behind the others."""
    assigned = {s.name for s in body if isinstance(s, ir.Assign)}
    if step.link is not None and assigned & _names(step.link.value):
        raise Unfit("its first product reads what its loop assigns")
    if any(step.product.name in _names(s.value) for s in step.between if isinstance(s, ir.Assign)):
        raise Unfit("its loop reads the accumulator")
    later = body[body.index(step.product) + 1 :]
    if {s.name for s in later if isinstance(s, ir.Assign)} & _names(step.product.value):
        raise Unfit("its loop assigns what the product read")
    dot = _dot(step.product)
    if step.link is None and not (operand(dot.a) and operand(dot.b)):
        raise Unfit("a product reads neither loaded tiles nor another product's result")
    if step.link is not None and (operand(dot.a) or not operand(dot.b) or not operand(_dot(step.link).b)):
        raise Unfit("its products are not chained from left to right")


def _held(step: Step, before: list[ir.Assign]) -> ir.Assign | None:
    """The tile that the link reads in each step."""
    if step.link is None:
        return None
    left = _dot(step.link).a
    for stmt in before:
        if isinstance(left, ir.Var) and stmt.name == left.name and isinstance(stmt.value, ir.Load):
            return stmt
    raise Unfit("the left side of its first product is not loaded ahead of the loop")


def _check(kernel: ir.Kernel, found: Pipeline) -> None:
    tiles = {g.name for g in kernel.grid if isinstance(g, ir.Tile)}
    mine = [*found.setup, *found.after, *found.loop.body]
    for stmt in mine:
        tops = list(ir.expressions(stmt))
        for e in (x for top in tops for x in ir.walk(top)):
            if isinstance(e, ir.Start | ir.Stop | ir.Count | ir.Before) and e.tile in tiles:
                raise Unfit("tiles of a consumer read where the tile of their program begins or ends")
            if isinstance(e, ir.Half | ir.Join):
                raise Unfit("it takes tiles apart")
            if isinstance(e, ir.Transpose) and not isinstance(e.x, ir.Load):
                raise Unfit("it transposes a computed tile")
    result = found.masked.link.value.type.shape if found.masked.link else ()
    shared = {o.load for o in (*found.link, *found.product)} | ({found.held.value} if found.held else set())
    if any(o.load.type.shape != result for o in found.beside):
        raise Unfit("it loads a tile that no product reads, and that is not like its first product's result")
    for e in ir.every_expr(kernel.body):
        axes = [a for a in e.type.shape if a != ir.UNIT]
        if len(e.type.shape) > 2 or len(set(axes)) < len(axes):
            raise Unfit("a tile has more than two axes, or one dim along both")
        if isinstance(e, ir.Load) and len(e.type.shape) > 1 and e not in shared:
            raise Unfit("it loads a tile that no product reads")


def _ring(dot: ir.Dot) -> Iterator[Operand]:
    for side in (dot.a, dot.b):
        if found := operand(side):
            yield found


def operand(e: ir.Expr) -> Operand | None:
    """The tile that one side of a product was loaded as; None for one that is computed or held."""
    if isinstance(e, ir.Load):
        return Operand(e, transposed=False)
    if isinstance(e, ir.Transpose) and isinstance(e.x, ir.Load):
        return Operand(e.x, transposed=True)
    return None


def _dot(stmt: ir.Assign) -> ir.Dot:
    assert isinstance(stmt.value, ir.Dot)
    return stmt.value


def _names(e: ir.Expr) -> set[str]:
    return {x.name for x in ir.walk(e) if isinstance(x, ir.Var)}
