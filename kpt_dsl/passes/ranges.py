"""Whole numbers that leave their type: found before a kernel runs, since every machine would wrap them in silence.

The interval of each integer expression that is made of constants, extents, indices and ``kd.Int`` arguments is known once these
are. What is loaded, summed, cast from a float, carried by a loop or made of a block's size is not, and wraps modulo 2**32 (or
2**64) wherever it runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kpt_dsl import ir
from kpt_dsl.arithmetic import limits
from kpt_dsl.dtypes import i32
from kpt_dsl.errors import InputError
from kpt_dsl.ir import Expr
from kpt_dsl.passes import fold
from kpt_dsl.passes.intervals import Interval, alone, around, of_one, of_two
from kpt_dsl.passes.split import interior

LARGEST_BLOCK = 1 << 16
"""More lanes than a tile has on any machine."""


@dataclass(frozen=True)
class Beyond:
    """An expression that may leave its type. ``made``: of masks that a loop evaluates, to find where they hold, at ``loc``."""

    expr: Expr
    interval: Interval
    loc: ir.Loc
    made: bool


class _Left(Exception):
    def __init__(self, expr: Expr, interval: Interval) -> None:
        self.expr, self.interval = expr, interval


def beyond(kernel: ir.Kernel, dims: Mapping[str, Interval], integers: Mapping[str, Interval]) -> Beyond | None:
    """The first expression of a kernel that may leave its type, None where each is seen to stay, or unknown.

    ``dims``: what extents may be; ``integers``: what ``kd.Int`` arguments may be, those left out are unknown.
    """
    return _Walk(kernel, dims, integers).block(kernel.body)


def check(kernel: ir.Kernel, dims: Mapping[str, int], integers: Mapping[str, int]) -> None:
    """Raises InputError where an expression leaves its type, naming it, what it is made of, and what would fit."""
    found = beyond(kernel, alone(dims), alone(integers))
    if found is None:
        return
    held = _made_of(kernel, found.expr)
    values = {name: integers[name] for name in held if name in integers} | {d: dims[d] for d in held if d in dims}
    low, high = limits(found.expr.type.dtype)
    number = found.interval[0] if found.interval[0] < low else found.interval[1]
    loc, text = found.loc, found.loc.text[found.loc.column : found.loc.end_column] or found.loc.text.strip()
    what = "where the masks of this loop hold is computed, and" if found.made else f"`{text}`"
    fits = [fit for name in values if name in integers for fit in [_fitting(kernel, dims, integers, name)] if fit]
    remedy = "; ".join(fits) or "compute it in 64 bits, .to(kd.i64), or on smaller numbers"
    where = ", ".join(f"{name} is {value}" for name, value in values.items())
    raise InputError(
        f"{kernel.name}: {Path(loc.file).name}:{loc.line}: {what} comes to {number}, but {found.expr.type.dtype} holds {low} "
        f"to {high}; here {where}\n  {loc.line} | {loc.text}\n  {remedy}"
    )


def widened(
    kernels: tuple[ir.Kernel, ...], dims: Mapping[str, int], integers: Mapping[str, int], known: Mapping[str, Interval]
) -> dict[str, Interval]:
    """Intervals around ``integers``, as wide as is seen to be safe, which hold what was ``known`` to be safe where they can."""
    for bits in (31, 30, 28, 24, 20, 16, 8, 0):
        reach = 2**bits - 1
        box = {}
        for name, value in integers.items():
            low, high = known.get(name, (value, value))
            box[name] = (min(low, value, -reach if value < 0 else 0), max(high, value, reach if value > 0 else 0))
        if all(beyond(kernel, alone(dims), box) is None for kernel in kernels):
            return box
    return alone(integers)


def _fitting(kernel: ir.Kernel, dims: Mapping[str, int], integers: Mapping[str, int], name: str) -> str:
    """What of one argument, between zero and what it is, would fit; empty where nothing does."""

    def fits(value: int) -> bool:
        return beyond(kernel, alone(dims), alone(dict(integers) | {name: value})) is None

    good, bad = 0, integers[name]
    if not fits(good):
        return ""
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return f"{name} may be {'down' if bad < 0 else 'up'} to {good}"


def _made_of(kernel: ir.Kernel, expr: Expr) -> list[str]:
    """The arguments and dims that an expression is made of, through variables."""
    values: dict[str, list[Expr]] = {}
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.Assign):
            values.setdefault(stmt.name, []).append(stmt.value)
    tiles = {g.name: g.dim for g in (*kernel.grid, *(s.over for s in ir.statements(kernel.body) if isinstance(s, ir.For)))}
    tiles |= {g.index: g.dim for g in ir.groups(kernel).values()}
    found: dict[str, None] = {}

    def visit(top: Expr) -> None:
        for node in ir.walk(top):
            match node:
                case ir.Param(name=name) | ir.Size(dim=name) | ir.Lanes(axis=ir.Axis(dim=name)):
                    found[name] = None
                case ir.Index(name=name):
                    found[tiles[name]] = None
                case ir.Start(tile=name) | ir.Stop(tile=name) | ir.Count(tile=name) | ir.Before(tile=name):
                    found[tiles[name]] = None
                case ir.Var(name=name):
                    for value in values.pop(name, []):
                        visit(value)

    visit(expr)
    return list(found)


class _Walk:
    """One walk over a kernel, knowing the interval of each variable."""

    def __init__(self, kernel: ir.Kernel, dims: Mapping[str, Interval], integers: Mapping[str, Interval]) -> None:
        self.kernel, self.dims, self.integers = kernel, dims, integers
        self.dim_of = {g.name: g.dim for g in kernel.grid} | {g.index: g.dim for g in ir.groups(kernel).values()}
        self.known: dict[str, Interval | None] = {}

    def block(self, body: tuple[ir.Stmt, ...]) -> Beyond | None:
        for stmt in body:
            try:
                for top in ir.expressions(stmt):
                    found = self.of(top)
            except _Left as left:
                return Beyond(left.expr, left.interval, left.expr.loc if left.expr.loc.line else stmt.loc, made=False)
            match stmt:
                case ir.Assign(name=name):
                    self.known[name] = found
                case ir.For():
                    if (inside := self.loop(stmt)) is not None:
                        return inside
        return None

    def loop(self, loop: ir.For) -> Beyond | None:
        self.dim_of[loop.over.name] = loop.over.dim
        self.known |= dict.fromkeys(loop.carried)
        before = dict(self.known)
        found = self.block(loop.body)  # what the author wrote is told of before what is made of it
        after, self.known = self.known | dict.fromkeys(loop.carried), before
        try:
            for end in () if found else self.ends(loop):
                self.of(end)
        except _Left as left:
            found = Beyond(left.expr, left.interval, loop.loc, made=True)
        self.known = after
        return found

    def ends(self, loop: ir.For) -> tuple[Expr, ...]:
        """The scalars that are computed to find where a loop needs no masks. Padding, which is not in this IR yet, may have its
        start rounded up where no mask of the author's does."""
        if not isinstance(loop.over, ir.Tile):
            return ()
        clear = interior(self.kernel, loop)
        return (clear.start, clear.stop) if clear is not None else (fold.round_up(loop.start, loop.tile.name),)

    def of(self, e: Expr) -> Interval | None:
        """The interval of an integer expression, None where it is unknown or no integer. Raises _Left."""
        parts = [self.of(child) for child in ir.children(e)]
        if e.type.dtype.kind != "int":
            return None
        found = self.interval(e, parts)
        low, high = limits(e.type.dtype)
        if found is None or (low <= found[0] and found[1] <= high):
            return found
        if isinstance(e, ir.Cast) or (isinstance(e, ir.Binary) and e.op == "shl"):  # which wraps, by the author's word
            return None
        raise _Left(e, found)

    def interval(self, e: Expr, parts: list[Interval | None]) -> Interval | None:
        match e:
            case ir.Const(value=value):
                return int(value), int(value)
            case ir.Param(name=name):
                return self.integers.get(name)
            case ir.Var(name=name):
                return self.known.get(name)
            case ir.Size(dim=dim):
                return self.dims[dim]
            case ir.Index(name=name) | ir.Start(tile=name) | ir.Before(tile=name):
                return self.indices(self.dim_of[name])
            case ir.Stop(tile=name) | ir.Count(tile=name):
                return 0, self.dims[self.dim_of[name]][1]
            case ir.Lanes(axis=axis):
                return self.indices(axis.dim)
            case ir.Cast(x=x):
                return parts[0] if x.type.dtype.kind == "int" else (0, 1) if x.type.dtype.kind == "bool" else None
            case ir.Full() | ir.Expand() | ir.Transpose() | ir.Reduce(op="max" | "min"):
                return parts[0]
            case ir.Where():
                return around(parts[1:])
            case ir.Unary(op=op):
                return None if parts[0] is None else of_one(op, parts[0])
            case ir.Binary(op="mul", a=ir.Binary(op="floordiv", a=x, b=ir.Block() as block), b=ir.Block() as by) if (
                block == by
            ):
                return self.rounded(x, block)
            case ir.Binary(op=op):
                left, right = parts
                return None if left is None or right is None else of_two(op, left, right)
        return None

    def rounded(self, x: Expr, block: ir.Block) -> Interval | None:
        """What ``fold.round_down`` or ``fold.round_up`` makes of a bound, whatever the block is."""
        match x:
            case ir.Binary(op="add", a=bound, b=ir.Binary(op="sub", a=more)) if more == block:
                found = self.of(bound)
                return None if found is None else (found[0], found[1] + LARGEST_BLOCK)
        found = self.of(x)
        return None if found is None else (found[0] - LARGEST_BLOCK if found[0] < 0 else 0, found[1])

    def indices(self, dim: str) -> Interval:
        return 0, max(self.dims[dim][1] - 1, 0)


def check_dims(name: str, dims: Mapping[str, int]) -> None:
    """Raises InputError for an extent whose indices int32 cannot hold."""
    greatest = limits(i32)[1]
    for dim, extent in dims.items():
        if extent > greatest:
            raise InputError(
                f"{name}: dim {dim} is {extent}; indices are int32, so that extents are {greatest} at most"
            )
