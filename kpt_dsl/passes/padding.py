"""Padding is never seen: masks where lanes that hold no element would reach a result.

For each value the pass tracks what its padding lanes hold, where that is known: zero behind a masked load, a constant where
constants met, what a condition leaves that fails beyond a loop's bounds. A reduction or product along an axis whose padding
is not its identity gets a ``where`` around its operand; loads and stores learn along which axes to mask.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from kpt_dsl import arithmetic, ir
from kpt_dsl.arithmetic import Number
from kpt_dsl.dtypes import DType, bool_, i32
from kpt_dsl.ir import Axis, Expr, Type
from kpt_dsl.passes import fold, infinity
from kpt_dsl.passes.affine import Lane
from kpt_dsl.passes.beyond import Beyond

_FOLDED = {
    "add", "sub", "mul", "max", "min", "maxnum", "minnum", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "shl", "shr",
    "neg", "not",
    "abs", "exp", "exp2", "sin", "tanh", "erf", "ndtr", "round",
}  # fmt: skip
"""Operations of which every backend makes the same number here: zeros, ones, infinities and what is exact."""


@dataclass(frozen=True, slots=True)
class Held:
    """What every lane in the padding along one position of a shape holds. ``inside``: only those that are in the padding along
    no other."""

    value: Number
    inside: bool = False


Pads = Mapping[int, Held]
"""Position in a value's shape, whose axis is padded -> what the padding along it holds; along one that is absent it may hold
anything. (A shape may hold one axis twice, so that its name does not tell where it stands.)"""


def guard(kernel: ir.Kernel, padded: Callable[[Axis], bool], level: Collection[Axis] = frozenset()) -> ir.Kernel:
    """``kernel`` with masks. ``padded`` says of a whole dim or a tile over all of its dim whether its lanes may outnumber its
    elements; a loop with bounds of its own always has padding, but those along ``level`` axes (``passes.level``)."""
    return replace(kernel, body=_Guard(kernel, padded, level).block(kernel.body, frozenset()))


def valid(position: int, shape: tuple[Axis, ...]) -> Expr:
    """``Valid`` of the axis at a position of ``shape``, with unit axes, ready to meet a value of that shape."""
    axis = shape[position]
    mask: Expr = ir.Valid(axis, type=Type(bool_, (axis,)))
    for i in range(len(shape)):
        if i != position:
            expanded = (*mask.type.shape[:i], ir.UNIT, *mask.type.shape[i:])
            mask = ir.Expand(mask, i, type=Type(bool_, expanded))
    return mask


def whole(loop: ir.For) -> bool:
    """Whether a loop runs over all of its dim."""
    size = isinstance(loop.stop, ir.Size) and loop.stop.dim == loop.over.dim
    return size and isinstance(loop.start, ir.Const) and loop.start.value == 0


def _identity(op: ir.ReduceOp, dtype: DType) -> Number:
    if op == "sum":
        return 0.0 if dtype.is_float else 0
    largest = op in ("max", "maxnum")
    if dtype.is_float:
        return -math.inf if largest else math.inf
    return arithmetic.limits(dtype)[0 if largest else 1]


class _Guard:
    """One walk over a kernel, knowing at each point what the padding of each variable holds."""

    def __init__(self, kernel: ir.Kernel, padded: Callable[[Axis], bool], level: Collection[Axis]) -> None:
        self.kernel = kernel
        self.padded = padded
        self.level = level
        self.ragged: set[Axis] = set()
        self.pads_of: dict[str, Pads] = {}
        self.beyond: dict[Axis, Beyond] = {}
        self.scales = frozenset(s.name for s in kernel.scalars if s.positive)
        self.above: set[str] = set()  # variables that are nowhere minus infinity
        self.indices: dict[Expr, Expr] = {}  # integer variable -> its value, in which none is left whose own is known

    def is_padded(self, axis: Axis) -> bool:
        return axis != ir.UNIT and (axis in self.ragged or self.padded(axis))

    def block(self, body: tuple[ir.Stmt, ...], masked_tiles: frozenset[str]) -> tuple[ir.Stmt, ...]:
        """``masked_tiles``: tiles of the innermost loop, whose loads are masked rather than wrapped."""
        done: list[ir.Stmt] = []
        for stmt in body:
            match stmt:
                case ir.Assign():
                    value, pads = self.expr(stmt.value, masked_tiles)
                    self.pads_of[stmt.name] = pads
                    self.above.discard(stmt.name)
                    if infinity.is_above(stmt.value, self.above):
                        self.above.add(stmt.name)
                    if stmt.value.type.dtype == i32:
                        self.indices[ir.Var(stmt.name, type=stmt.value.type)] = self.plain(stmt.value)
                    done.append(replace(stmt, value=value))
                case ir.Store():
                    index = tuple(self.expr(i, masked_tiles)[0] if isinstance(i, Expr) else i for i in stmt.index)
                    value, _ = self.expr(stmt.value, masked_tiles)
                    masked = tuple(filter(self.is_padded, ir.kept(index)))
                    done.append(replace(stmt, index=index, value=value, masked=masked))
                case ir.For():
                    done.append(self.loop(stmt, masked_tiles))
        return tuple(done)

    def loop(self, loop: ir.For, masked_tiles: frozenset[str]) -> ir.For:
        start, stop = self.expr(loop.start, masked_tiles)[0], self.expr(loop.stop, masked_tiles)[0]
        assigned = frozenset(s.name for s in ir.statements(loop.body) if isinstance(s, ir.Assign))
        if isinstance(loop.over, ir.Tile):
            masked_tiles = frozenset({loop.tile.name})
            if not whole(loop) and not loop.deals_dim and loop.tile.axis not in self.level:
                self.ragged.add(loop.tile.axis)
            if loop.start == ir.scalar(0) or loop.at_start:
                self.beyond[loop.tile.axis] = Beyond(self.plain(loop.stop), assigned)
        self.forget(assigned)
        body = self.block(loop.body, masked_tiles)
        self.forget(assigned)
        return replace(loop, start=start, stop=stop, body=body)

    def forget(self, names: frozenset[str]) -> None:
        """Variables may hold anything from here on."""
        self.pads_of = {name: pads for name, pads in self.pads_of.items() if name not in names}
        self.above -= names
        self.indices = {x: e for x, e in self.indices.items() if not any(_is_one_of(y, names) for y in (x, *ir.walk(e)))}

    def plain(self, e: Expr) -> Expr:
        """Indices with what variables hold in their place."""
        return fold.rebuild(e, self.indices)

    # -------------------------------------------------------------- expressions
    def expr(self, node: Expr, masked_tiles: frozenset[str]) -> tuple[Expr, Pads]:
        """The guarded expression and what its padding holds."""
        parts = [self.expr(child, masked_tiles) for child in ir.children(node)]
        node = ir.with_children(node, tuple(e for e, _ in parts))
        pads = [p for _, p in parts]
        match node:
            case ir.Reduce():
                return self.reduction(node, pads[0])
            case ir.Dot():
                return self.product(node, pads), {}
            case ir.Load() | ir.Gather():
                return self.read(node, masked_tiles)
            case ir.Var():
                return node, self.pads_of.get(node.name, {})
            case ir.Full(value=ir.Const(value=value)):
                return node, {i: Held(value) for i in self.padded_positions(node)}
            case ir.Valid():
                return node, {0: Held(False)}
            case ir.Cast():
                to = node.type.dtype
                return node, {i: replace(h, value=arithmetic.converted(h.value, to)) for i, h in pads[0].items()}
            case ir.Transpose():
                return node, {1 - i: h for i, h in pads[0].items()}
            case ir.Expand(axis=at):
                return node, {i + (i >= at): h for i, h in pads[0].items()}
            case ir.Half():
                return node, {i: h for i, h in pads[0].items() if i < len(node.type.shape)}
            case ir.Join():
                return node, {i: h for i, h in pads[0].items() if pads[1].get(i) == h}
            case ir.Where():
                return node, self.chosen(node, pads)
            case ir.Unary() | ir.Binary():
                return node, self.elementwise(node, pads)
        return node, {}

    def padded_positions(self, node: Expr) -> list[int]:
        """The positions of a value's shape along which it has padding."""
        return [i for i, axis in enumerate(node.type.shape) if self.is_padded(axis)]

    def lane(self, operand: Expr, pads: Pads, position: int) -> Held | None:
        """What an operand holds in the padding along a position, None when unknown."""
        return Held(operand.value) if isinstance(operand, ir.Const) else pads.get(position)

    def elementwise(self, node: ir.Unary | ir.Binary, pads: list[Pads]) -> Pads:
        found: dict[int, Held] = {}
        for position in self.padded_positions(node):
            held = [self.lane(c, p, position) for c, p in zip(ir.children(node), pads, strict=True)]
            value = self.folded(node, held)
            if value is None and isinstance(node, ir.Binary):
                value = self.half_known(node, held[0], position)
            if value is not None:
                found[position] = value
        return found

    def folded(self, node: ir.Unary | ir.Binary, held: list[Held | None]) -> Held | None:
        """What an operation makes of numbers."""
        known = [h for h in held if h is not None]
        if node.op not in _FOLDED or len(known) < len(held):
            return None
        value = arithmetic.evaluate(node.op, *(h.value for h in known))
        if value is None or value != value:
            return None
        return Held(arithmetic.converted(value, node.type.dtype), any(h.inside for h in known))

    def half_known(self, node: ir.Binary, left: Held | None, position: int) -> Held | None:
        """What an operation gives in the padding along a position whatever its right operand holds there."""
        if self.fails(node, position):
            return Held(False, inside=self.padded_positions(node) != [position])
        if left is not None and left.value == -math.inf and infinity.stays(node, position, self.scales, self.above):
            return Held(-math.inf, inside=True)
        return None

    def fails(self, node: ir.Binary, position: int) -> bool:
        """Whether a comparison is false in the padding along a position."""
        axis = node.type.shape[position]
        if (beyond := self.beyond.get(axis)) is None or not isinstance(plain := self.plain(node), ir.Binary):
            return False
        return beyond.fails(plain, Lane(axis, position))

    def chosen(self, node: ir.Where, pads: list[Pads]) -> Pads:
        found: dict[int, Held] = {}
        for position in self.padded_positions(node):
            cond = self.lane(node.cond, pads[0], position)
            a, b = self.lane(node.a, pads[1], position), self.lane(node.b, pads[2], position)
            if cond is None and (a is None or b is None or a.value != b.value):
                continue
            used = [a, b] if cond is None else [cond, a if cond.value else b]
            known = [h for h in used if h is not None]
            if len(known) == len(used):
                found[position] = Held(known[-1].value, any(h.inside for h in known))
        return found

    def reduction(self, node: ir.Reduce, pads: Pads) -> tuple[Expr, Pads]:
        identity, axis = _identity(node.op, node.x.type.dtype), node.x.type.shape[node.axis]
        # Sums of anything else are as many times that; of a whole dim there may be no element, and then any gives its identity.
        alone = node.op == "sum" or (axis.tile is None and self.is_padded(axis))
        kept = [(i, h) for i, h in pads.items() if i != node.axis and not h.inside and (not alone or h.value == identity)]
        return replace(node, x=self.masked(node.x, pads, node.axis, identity)), {i - (i > node.axis): h for i, h in kept}

    def product(self, node: ir.Dot, pads: list[Pads]) -> Expr:
        return replace(node, a=self.masked(node.a, pads[0], 1, 0.0), b=self.masked(node.b, pads[1], 0, 0.0))

    def masked(self, x: Expr, pads: Pads, position: int, identity: Number) -> Expr:
        """``x`` with the identity in the padding along a position, unless it is known to be there."""
        held = pads.get(position)
        if not self.is_padded(x.type.shape[position]) or (held is not None and held.value == identity):
            return x
        if identity == 0 and isinstance(x, ir.Cast) and x.type.dtype.is_float and x.x.type.dtype.is_float:
            # Inside the cast it is the mask that other readers of the same value have. (Infinities are not: fp8 has none.)
            return replace(x, x=self.masked(x.x, {}, position, identity))
        fill = ir.Const(identity, type=Type(x.type.dtype))
        return ir.Where(valid(position, x.type.shape), x, fill, type=x.type, loc=x.loc)

    def read(self, node: ir.Read, masked_tiles: frozenset[str]) -> tuple[Expr, Pads]:
        """Tiles of the innermost loop, whole dims, the contiguous last dim and the axes of tiles that are indices, which hold
        anything in their padding, are masked; the others are left to wrapping, which costs nothing inside the loop and keeps
        every lane in bounds."""
        named = ir.kept(tuple(i for i in node.index if isinstance(i, Expr)))
        masked = tuple(
            i
            for i in ir.kept(node.index)
            if self.is_padded(i) and (i.tile is None or i.tile in masked_tiles or i in named or i == node.index[-1])
        )
        zero = Held(0.0 if node.type.dtype.is_float else 0)
        return replace(node, masked=masked), {i: zero for i, axis in enumerate(node.type.shape) if axis in masked}


def _is_one_of(e: Expr, names: Collection[str]) -> bool:
    return isinstance(e, ir.Var) and e.name in names
