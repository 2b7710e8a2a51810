"""Building and simplifying expressions: i32 scalar arithmetic that folds as it goes, and conditions that became known."""

from dataclasses import replace

from kpt_dsl import ir
from kpt_dsl.dtypes import bool_, i32
from kpt_dsl.ir import Expr, Type

_I32 = Type(i32)


def _value(x: Expr) -> int | None:
    return int(x.value) if isinstance(x, ir.Const) else None


def add(a: Expr, b: Expr) -> Expr:
    """a + b of i32 scalars."""
    x, y = _value(a), _value(b)
    if x is not None and y is not None:
        return ir.scalar(x + y)
    if x == 0:
        return b
    if y == 0:
        return a
    if y is not None and y < 0:
        return ir.Binary("sub", a, ir.scalar(-y), type=_I32)
    return ir.Binary("add", a, b, type=_I32)


def sub(a: Expr, b: Expr) -> Expr:
    """a - b of i32 scalars."""
    y = _value(b)
    if y is not None:
        return add(a, ir.scalar(-y))
    return ir.Binary("sub", a, b, type=_I32)


def scale(a: Expr, factor: int) -> Expr:
    """a times a whole number."""
    x = _value(a)
    if x is not None:
        return ir.scalar(x * factor)
    return a if factor == 1 else ir.Binary("mul", a, ir.scalar(factor), type=_I32)


def smallest(first: Expr, *rest: Expr) -> Expr:
    """Minimum of i32 scalars, each different one once."""
    return _extreme("min", (first, *rest))


def largest(first: Expr, *rest: Expr) -> Expr:
    """Maximum of i32 scalars, each different one once."""
    return _extreme("max", (first, *rest))


def _extreme(op: ir.BinaryOp, values: tuple[Expr, ...]) -> Expr:
    distinct = list(dict.fromkeys(values))
    known = [v for v in (_value(d) for d in distinct) if v is not None]
    if known:
        best = min(known) if op == "min" else max(known)
        distinct = [d for d in distinct if _value(d) is None] + [ir.scalar(best)]
    result = distinct[0]
    for other in distinct[1:]:
        result = ir.Binary(op, result, other, type=_I32)
    return result


def round_down(x: Expr, tile: str) -> Expr:
    """The largest multiple of a tile's block that is not above x; x must not be negative."""
    if _value(x) == 0:
        return x
    block = ir.Block(tile, type=_I32)
    return ir.Binary("mul", ir.Binary("floordiv", x, block, type=_I32), block, type=_I32)


def round_up(x: Expr, tile: str) -> Expr:
    """The smallest multiple of a tile's block that is not below x; x must not be negative."""
    if _value(x) == 0:
        return x
    return round_down(add(x, sub(ir.Block(tile, type=_I32), ir.scalar(1))), tile)


def of_bits(op: ir.BinaryOp, b: Expr) -> tuple[ir.BinaryOp, Expr]:
    """Floor division by a power of two as the shift that it is, its remainder as a mask; of other operations what is given."""
    value = _value(b) if op in ("floordiv", "mod") else None
    if value is None or value < 1 or value & (value - 1):
        return op, b
    held = value.bit_length() - 1 if op == "floordiv" else value - 1
    return "shr" if op == "floordiv" else "and", ir.Const(held, type=b.type, loc=b.loc)


def is_plain_shift(op: ir.BinaryOp, a: Expr, count: Expr) -> bool:
    """Whether each machine's own shift, and Python's, which drops no bits to the left, does what is meant."""
    known = isinstance(count, ir.Const) and 0 <= count.value < count.type.dtype.bits
    return known and (op == "shr" or bool(a.type.shape))


def truth(value: bool, like: Expr) -> Expr:
    """A condition that is known all over the shape of another."""
    known = ir.Const(value, type=Type(bool_), loc=like.loc)
    return ir.Full(known, type=Type(bool_, like.type.shape), loc=like.loc) if like.type.shape else known


def _truth(x: Expr) -> bool | None:
    """What a condition is all over its shape, None where that is not known."""
    if isinstance(x, ir.Full):
        return _truth(x.value)
    return bool(x.value) if isinstance(x, ir.Const) and x.type.dtype == bool_ else None


def resolve(node: Expr) -> Expr:
    """``where``, ``&``, ``|`` and ``~`` of conditions that are known give way to what these select; shapes stay."""
    match node:
        case ir.Where(cond=cond, a=a, b=b) if (known := _truth(cond)) is not None:
            return _as(a if known else b, node)
        case ir.Binary(op="and" | "or" as op, a=a, b=b):
            for one, other in ((a, b), (b, a)):
                if (known := _truth(one)) is not None:
                    return _as(other, node) if known == (op == "and") else truth(known, node)
        case ir.Unary(op="not", x=x) if (known := _truth(x)) is not None:
            return truth(not known, node)
        case ir.Expand(x=x) | ir.Transpose(x=x) if (known := _truth(x)) is not None:
            return truth(known, node)
    return node


def _as(chosen: Expr, node: Expr) -> Expr:
    """What was chosen, in the shape that its node had; the node itself where that takes more than filling a tile."""
    if chosen.type.shape == node.type.shape:
        return chosen
    return node if chosen.type.shape else ir.Full(chosen, type=node.type, loc=node.loc)


def rebuild(node: Expr, leaf: "dict[Expr, Expr]") -> Expr:
    """An expression with some of its parts replaced, and ``where``s that this decides resolved."""
    return _rebuilt(node, leaf, {type(part) for part in leaf}) if leaf else node


def _rebuilt(node: Expr, leaf: "dict[Expr, Expr]", kinds: set[type[Expr]]) -> Expr:
    """``kinds``: of the parts to replace; nodes of others are not looked up, which would read all that is inside them."""
    if type(node) in kinds and node in leaf:
        return leaf[node]
    rebuilt = ir.with_children(node, tuple([_rebuilt(c, leaf, kinds) for c in ir.children(node)]))
    return node if rebuilt is node else resolve(rebuilt)


def rebuild_statement(stmt: ir.Stmt, leaf: "dict[Expr, Expr]") -> ir.Stmt:
    """A statement, a loop's body included, with parts of its expressions replaced."""
    match stmt:
        case ir.Assign():
            return replace(stmt, value=rebuild(stmt.value, leaf))
        case ir.Store():
            index = tuple(rebuild(i, leaf) if isinstance(i, Expr) else i for i in stmt.index)
            return replace(stmt, index=index, value=rebuild(stmt.value, leaf))
        case ir.For():
            body = tuple(rebuild_statement(s, leaf) for s in stmt.body)
            return replace(stmt, start=rebuild(stmt.start, leaf), stop=rebuild(stmt.stop, leaf), body=body)
    raise AssertionError(stmt)


def _matters(stmt: ir.Assign, read: set[str]) -> bool:
    to_itself = isinstance(stmt.value, ir.Var) and stmt.value.name == stmt.name
    return stmt.name in read and not to_itself


def without_unused(body: tuple[ir.Stmt, ...], kept: tuple[str, ...]) -> tuple[ir.Stmt, ...]:
    """A loop's body without assignments that it never reads or that change nothing; ``kept`` are read outside (carried)."""
    while True:
        read = {x.name for x in ir.every_expr(body) if isinstance(x, ir.Var)} | set(kept)
        carried_inside = {name for s in ir.statements(body) if isinstance(s, ir.For) for name in s.carried}
        live = tuple(s for s in body if not isinstance(s, ir.Assign) or _matters(s, read | carried_inside))
        if len(live) == len(body):
            return body
        body = live
