"""The typing rules of tile expressions: promotion, broadcasting, products, reductions.

Each function builds a typed IR node from typed operands or fails at ``loc`` with what to write instead. Python numbers take
the dtype of the other operand.
"""

import math
from dataclasses import replace
from typing import Any, Literal

from kpt_dsl import arithmetic, ir
from kpt_dsl.arithmetic import Number
from kpt_dsl.dtypes import DType, bool_, f32, i32
from kpt_dsl.frontend.source import fail
from kpt_dsl.ir import UNIT, Axis, Expr, Loc, Type

_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}
_SYMBOL = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>", "max": "kd.maximum",
    "min": "kd.minimum", "maxnum": "kd.maximum", "minnum": "kd.minimum",
}  # fmt: skip
_OF_BITS = ("and", "or", "xor", "shl", "shr")
_OF_INTEGERS: dict[str, Literal["max", "min"]] = {"maxnum": "max", "minnum": "min"}
"""What may drop a NaN is, of integers, which have none, what keeps it."""


def constant(value: Number, dtype: DType | None, loc: Loc) -> ir.Const:
    """A Python number as an IR constant; its own kind unless a dtype is given.

    A whole number that the type cannot hold is refused: the text says another number than it would be.
    """
    if dtype is None:
        dtype = bool_ if isinstance(value, bool) else i32 if isinstance(value, int) else f32
    if dtype.kind == "int" and isinstance(value, int):
        low, high = arithmetic.limits(dtype)
        if not low <= value <= high:
            fail(loc, f"{value} does not fit {dtype}, which holds {low} to {high}",
                 f"write it as a float, {value}.0, or meet a kd.i64 value with it")  # fmt: skip
    return ir.Const(_as_held(value, dtype), type=Type(dtype), loc=loc)


def _as_held(value: Number, dtype: DType) -> Number:
    """A number as a type holds it; a float32 is left to print as the author wrote it, and rounds where it is read."""
    held = arithmetic.converted(value, dtype)
    return float(value) if dtype == f32 and abs(held) < math.inf else held


def cast(x: Expr, dtype: DType, loc: Loc) -> Expr:
    """``x`` in another dtype; nothing to do when it has it already.

    Between integers and narrow floats lies float32, so that each backend rounds as often as the others.
    """
    held = x.type.dtype
    if held == dtype:
        return x
    if isinstance(x, ir.Const):
        exact = x.value if dtype == f32 else arithmetic.converted(x.value, held)
        return ir.Const(_as_held(exact, dtype), type=Type(dtype), loc=loc)
    if dtype == bool_:
        return binary("ne", x, 0.0 if held.is_float else 0, loc)
    if held.is_narrow_int and dtype != i32:
        x = cast(x, i32, loc)
    if dtype.is_narrow_int and held != i32:
        x = cast(x, i32, loc)
        if held.is_float:  # what is too large saturates
            low, high = arithmetic.limits(dtype)
            x = binary("min", binary("max", x, low, loc), high, loc)
    held = x.type.dtype
    if held.is_float != dtype.is_float and f32 not in (held, dtype):
        x = cast(x, f32, loc)
    return ir.Cast(x, type=Type(dtype, x.type.shape), loc=loc)


def widened(x: Expr, loc: Loc) -> Expr:
    """An integer as arithmetic takes it."""
    return cast(x, i32, loc) if x.type.dtype.is_narrow_int else x


def spreads(shape: tuple[Axis, ...], over: tuple[Axis, ...]) -> bool:
    """Whether a tile of a shape says one thing of each element of another: axes are equal, or its own has length one."""
    return len(shape) == len(over) and all(x in (y, UNIT) for x, y in zip(shape, over, strict=True))


def broadcast(a: Type, b: Type, what: str, loc: Loc) -> tuple[Axis, ...]:
    """The common shape of two operands: equal axes, unit axes against any, or a scalar."""
    if not a.shape or not b.shape:
        return a.shape or b.shape
    if len(a.shape) != len(b.shape):
        wide, narrow = (a, b) if len(a.shape) > len(b.shape) else (b, a)
        fail(loc, f"{what} of {a} and {b}: their ranks differ",
             f"give the {narrow} its missing axis: [:, None] adds one behind, [None, :] in front, to match {wide}")  # fmt: skip
    shape = []
    for x, y in zip(a.shape, b.shape, strict=True):
        if x != y and UNIT not in (x, y):
            fail(loc, f"{what} of {a} and {b}: axis {x} does not match axis {y}",
                 "the two run over different indices; transpose with .T, or index both with the same tile")  # fmt: skip
        shape.append(y if x == UNIT else x)
    return tuple(shape)


def _common(a: Expr | Number, b: Expr | Number, loc: Loc) -> tuple[Expr, Expr]:
    """Both operands as expressions of one dtype: floats meet in float32, integers in the wider."""
    kinds = [x.type.dtype if isinstance(x, Expr) else None for x in (a, b)]
    float_number = any(isinstance(x, float) for x in (a, b))
    known = [k for k in kinds if k is not None]
    if float_number or any(k.is_float for k in known):
        to = f32
    elif known and all(k == bool_ for k in known) and all(isinstance(x, Expr | bool) for x in (a, b)):
        to = bool_
    else:
        to = max((i32, *(k for k in known if k.kind == "int")), key=lambda k: k.bits)
    return tuple(cast(x, to, loc) if isinstance(x, Expr) else constant(x, to, loc) for x in (a, b))  # type: ignore[return-value]


def binary(op: ir.BinaryOp, a: Expr | Number, b: Expr | Number, loc: Loc) -> Expr:
    """An elementwise operator on two operands, at least one of them an expression."""
    name = _SYMBOL[op]
    conditions = [x for x in (a, b) if isinstance(x, Expr) and x.type.dtype == bool_]
    if conditions and op not in ("and", "or", "xor", "eq", "ne"):
        fail(loc, f"{name} of {conditions[0].type}: conditions have no arithmetic", "use kd.where(condition, a, b)")
    left, right = _common(a, b, loc)
    shape = broadcast(left.type, right.type, name, loc)
    kind = left.type.dtype.kind
    if op in _OF_BITS:
        if kind == "float" or (conditions and kind != "bool"):
            got = " and ".join(str(x.type) if isinstance(x, Expr) else repr(x) for x in (a, b))
            fail(loc, f"{name} takes two whole numbers or two conditions, but got {got}", "compare first: (a < b) & (c < d)")
        result = left.type.dtype
    elif op in _COMPARISONS:
        result = bool_
    elif op in ("floordiv", "mod") and kind == "float":
        fail(loc, f"{name} takes whole numbers, but got {left.type} and {right.type}", "use kd.floor(a / b)")
    elif op == "div" and kind == "int":
        left, right, result = cast(left, f32, loc), cast(right, f32, loc), f32
    else:
        result = left.type.dtype
    if kind == "int":
        op = _OF_INTEGERS.get(op, op)
    return _folded(ir.Binary(op, left, right, type=Type(result, shape), loc=loc))


def unary(op: ir.UnaryOp, x: Expr | Number, loc: Loc) -> Expr:
    """An elementwise function; those of real analysis give float32."""
    value = x if isinstance(x, Expr) else constant(x, None, loc)
    kind = value.type.dtype.kind
    if op == "not":
        if kind != "bool":
            fail(loc, f"~ inverts conditions, but got {value.type}", "compare first: ~(a < b)")
        return _folded(ir.Unary(op, value, type=value.type, loc=loc))
    if kind == "bool":
        fail(loc, f"{op} of a condition ({value.type})", "use kd.where(condition, a, b) to make numbers of it")
    value = cast(value, f32, loc) if kind == "float" or op not in ("neg", "abs") else widened(value, loc)
    return _folded(ir.Unary(op, value, type=value.type, loc=loc))


def _folded(node: ir.Binary | ir.Unary) -> Expr:
    """What an operation makes of literals: exactly, and rounded where it meets what is not one, as each backend would else do
    of some and not of others. What leaves the integers, or divides them by zero, stays for checks to name. Once something is
    that itself."""
    operands = ir.children(node)
    if node.op == "mul":
        for one, other in (operands, operands[::-1]):
            if isinstance(one, ir.Const) and one.value == 1:
                return other
    known = [x.value for x in operands if isinstance(x, ir.Const)]
    value = arithmetic.evaluate(node.op, *known) if len(known) == len(operands) else None
    if value is not None and node.op == "shl":
        value = arithmetic.converted(value, node.type.dtype)
    exact = node.type.dtype == f32 or (value is not None and arithmetic.converted(value, node.type.dtype) == value)
    return node if value is None or not exact else ir.Const(value, type=node.type, loc=node.loc)


def where(cond: Expr, a: Expr | Number, b: Expr | Number, loc: Loc) -> Expr:
    """Elementwise choice; both sides meet in one dtype."""
    if cond.type.dtype != bool_:
        fail(loc, f"kd.where needs a condition first, but got {cond.type}", "compare: kd.where(x > 0, a, b)")
    if isinstance(a, Expr) and isinstance(b, Expr) and a.type.dtype == b.type.dtype:
        left, right = a, b
    else:
        left, right = _common(a, b, loc)
    shape = broadcast(left.type, right.type, "kd.where", loc)
    shape = broadcast(cond.type, Type(left.type.dtype, shape), "kd.where", loc)
    return ir.Where(cond, left, right, type=Type(left.type.dtype, shape), loc=loc)


def place(op: Literal["max", "min"], x: ir.Var, axis: Any, loc: Loc) -> Expr:
    """The index, in its dim, of the first of the largest or smallest elements along an axis; a NaN is one."""
    most = reduce(op, x, axis, loc, f"kd.arg{op}")
    along = [i == axis % len(x.type.shape) for i in range(len(x.type.shape))]
    dim = x.type.shape[along.index(True)]
    indices = expand(ir.Lanes(dim, type=Type(i32, (dim,)), loc=loc), tuple(slice(None) if a else None for a in along), loc)
    found = binary("eq", x, expand(most, tuple(None if a else slice(None) for a in along), loc), loc)
    if x.type.dtype.is_float:
        found = binary("or", found, binary("ne", x, x, loc), loc)
    return reduce("min", where(found, indices, ir.Size(dim.dim, type=Type(i32), loc=loc), loc), axis, loc)


def reduce(op: ir.ReduceOp, x: Expr, axis: Any, loc: Loc, name: str = "") -> Expr:
    """Over one axis, given by its number; ``name``: the word for it, if it is not that of the operation."""
    rank, name = len(x.type.shape), name or f"kd.{op.removesuffix('num')}"
    if not isinstance(axis, int) or isinstance(axis, bool) or not -rank <= axis < rank:
        fail(loc, f"{name} of {x.type} along axis {axis!r}", f"axis must be a whole number from {-rank} to {rank - 1}"
             if rank else "a scalar has no axis to reduce")  # fmt: skip
    axis %= rank
    if x.type.shape[axis] == UNIT:
        fail(loc, f"{name} of {x.type} along a unit axis", "reduce before [:, None], not after it")
    if x.type.dtype == bool_:
        fail(loc, f"{name} of conditions ({x.type})", "use kd.where(condition, 1, 0) first")
    value = cast(x, f32, loc) if x.type.dtype.is_float else widened(x, loc)
    shape = value.type.shape[:axis] + value.type.shape[axis + 1 :]
    if not x.type.dtype.is_float:
        op = _OF_INTEGERS.get(op, op)
    return ir.Reduce(op, value, axis, type=Type(value.type.dtype, shape), loc=loc)


def transpose(x: Expr, loc: Loc) -> Expr:
    """``.T`` of a two-axis tile."""
    if len(x.type.shape) != 2:
        fail(loc, f".T needs a tile with two axes, but got {x.type}", "load it with two tile or ':' indices")
    if isinstance(x, ir.Transpose):
        return x.x
    return ir.Transpose(x, type=Type(x.type.dtype, x.type.shape[::-1]), loc=loc)


def expand(x: Expr, index: tuple[Any, ...], loc: Loc) -> Expr:
    """``x[:, None]``: unit axes where None stands; a full slice for each axis of x."""
    kept = [i for i in index if i == slice(None)]
    if len(kept) != len(x.type.shape) or any(i is not None and i != slice(None) for i in index):
        fail(loc, f"a value of type {x.type} takes one ':' for each of its {len(x.type.shape)} axes, and None for new ones",
             "elements of a tile cannot be picked; load what you need from the tensor instead")  # fmt: skip
    for position, i in enumerate(index):
        if i is None:
            shape = (*x.type.shape[:position], UNIT, *x.type.shape[position:])
            x = ir.Expand(x, position, type=Type(x.type.dtype, shape), loc=loc)
    return x


def split(x: Expr, loc: Loc) -> tuple[Expr, Expr]:
    """``x[..., 0]`` and ``x[..., 1]``; that the last axis has two elements is seen where extents are known."""
    last = x.type.shape[-1] if len(x.type.shape) > 1 else UNIT
    if last.tile is not None or last == UNIT:
        fail(loc, f"kd.split takes a tile whose last axis is a whole dim, beside others, but got {x.type}",
             "load it with ':' last: low, high = kd.split(x[n, :])")  # fmt: skip
    kind = Type(x.type.dtype, x.type.shape[:-1])
    return ir.Half(x, 0, type=kind, loc=loc), ir.Half(x, 1, type=kind, loc=loc)


def join(a: Expr, b: Expr, dim: str, loc: Loc) -> Expr:
    """The reverse, along a dim that has two elements."""
    a, b = _common(a, b, loc)
    shape = a.type.shape
    if shape != b.type.shape or not 0 < len(shape) < 3 or UNIT in shape:
        fail(loc, f"kd.join takes two tiles of one shape with one or two axes, but got {a.type} and {b.type}",
             "broadcast with arithmetic first")  # fmt: skip
    return ir.Join(a, b, type=Type(a.type.dtype, (*shape, Axis(dim))), loc=loc)


def dot(a: Expr, b: Expr, acc: Expr | None, loc: Loc) -> Expr:
    """The product's types: (m, k) x (k, n), dtypes reconciled to what matrix units take."""
    for x, which in ((a, "first"), (b, "second")):
        if len(x.type.shape) != 2 or UNIT in x.type.shape:
            fail(loc, f"kd.dot takes tiles with two axes, but its {which} operand is {x.type}",
                 "load it with two tile or ':' indices; for a row times a column use kd.sum(a * b, axis=...)")  # fmt: skip
        if not x.type.dtype.is_float:
            fail(loc, f"kd.dot takes floats, but its {which} operand is {x.type}", "convert it first: x.to(kd.bf16)")
    (m, k), (k2, n) = a.type.shape, b.type.shape
    if k != k2:
        transposed = k == n or (k2 == m)
        fail(loc, f"kd.dot takes a (m, k) and a (k, n) tile, but got {a.type} and {b.type}: {k} does not match {k2}",
             "write .T behind the second operand" if transposed and k == n else
             "write .T behind the first operand" if transposed else "both must run over the same tile or dim")  # fmt: skip
    a, b = _product_dtypes(a, b, loc)
    if m == n:
        fail(loc, f"both axes of this product run over {m}",
             "load one operand with the tile of a second loop over the same dim")  # fmt: skip
    result = Type(f32, (m, n))
    if acc is not None and acc.type != result:
        fail(loc, f"kd.dot adds to an accumulator of type {result}, but got {acc.type}",
             f"start with kd.zeros([{m}, {n}])")  # fmt: skip
    return ir.Dot(a, b, acc, type=result, loc=loc)


def _product_dtypes(a: Expr, b: Expr, loc: Loc) -> tuple[Expr, Expr]:
    x, y = a.type.dtype, b.type.dtype
    if x == y or (x.is_fp8 and y.is_fp8):
        return a, b
    if x == f32 or (x.is_fp8 and y != f32):
        return _rounded(a, y, loc), b
    if y == f32 or y.is_fp8:
        return a, _rounded(b, x, loc)
    fail(loc, f"kd.dot cannot multiply {x} by {y}", f"convert one operand: b.to(kd.{x}), or a.to(kd.{y})")


def _rounded(x: Expr, to: DType, loc: Loc) -> Expr:
    """An operand in another dtype; a transposed tile is rounded as it lies, as another product may want it."""
    if isinstance(x, ir.Transpose):
        inner = cast(x.x, to, loc)
        return replace(x, x=inner, type=Type(to, x.type.shape))
    return cast(x, to, loc)
