"""Indices that may be of no element: which of a kernel's indices that are numbers, or tiles of them, are seen to lie within
their dims, and which are not.

An index that can only have one value is decided here: a literal beyond its dim is an error before anything runs. Others are
followed as intervals (``h // kd.group("H", "G")`` stays below G); what is loaded or given with the call may be anything, and
stays ``ir.Checked``: every backend sees to that in its own way.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kpt_dsl import ir
from kpt_dsl.arithmetic import limits
from kpt_dsl.errors import IndexRangeError
from kpt_dsl.ir import Expr
from kpt_dsl.passes.intervals import Interval, around, of_one, of_two


def check(kernel: ir.Kernel, extents: Mapping[str, Interval]) -> ir.Kernel:
    """``kernel`` with those indices in ``Checked`` that are not seen to be within their dims, whatever of ``extents``
    these have, and with starts of loops that do not lie beyond the dim, whatever was loaded for them.

    Raises IndexRangeError for an index that cannot be, unless no program runs or its load has a condition.
    """
    if any(not extents[loop.dim][1] for loop in kernel.grid) or any(extents[g.dim][1] < 2 for g in ir.groups(kernel).values()):
        return kernel
    return replace(kernel, body=_Check(kernel, extents).block(kernel.body))


def checked(kernel: ir.Kernel) -> bool:
    """Whether a kernel has an index that may be of no element."""
    return any(isinstance(e, ir.Checked) for e in ir.every_expr(kernel.body))


def indexed_with(kernel: ir.Kernel) -> Iterator[tuple[str, str]]:
    """The tensors and scalar arguments that such indices are made of, each with a dim that it indexes."""
    values: dict[str, list[Expr]] = {}
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.Assign):
            values.setdefault(stmt.name, []).append(stmt.value)
    for index in (e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Checked)):
        todo, seen = [index.x], set[str]()
        while todo:
            for e in ir.walk(todo.pop()):
                if isinstance(e, ir.Read | ir.Param):
                    yield e.name if isinstance(e, ir.Param) else e.tensor, index.dim
                elif isinstance(e, ir.Var) and e.name not in seen:
                    seen.add(e.name)
                    todo += values.get(e.name, [])


def place(kernel: ir.Kernel, index: ir.Checked) -> str:
    """Where an index stands, as errors say it: file and line, kernel, tensor, dim."""
    where = f"{Path(index.loc.file).name}:{index.loc.line}"
    return f"{where}: {kernel.name} indexes {_shown(kernel.tensor(index.tensor))} along {index.dim}"


def _shown(tensor: ir.Tensor) -> str:
    return f"{tensor.name}[{', '.join(tensor.dims)}]"


class _Check:
    """One walk over a kernel. ``indices`` and ``tiles``: how many values the indices of each loop have."""

    def __init__(self, kernel: ir.Kernel, extents: Mapping[str, Interval]) -> None:
        self.kernel, self.extents = kernel, extents
        loops = [*kernel.grid, *(s.over for s in ir.statements(kernel.body) if isinstance(s, ir.For))]
        self.dim_of = {loop.name: loop.dim for loop in loops if not isinstance(loop, ir.Tile)}
        self.indices = {loop.name: extents[loop.dim][1] for loop in loops if not isinstance(loop, ir.Tile)}
        self.groups = {g.index: g.dim for g in ir.groups(kernel).values()}
        self.indices |= dict.fromkeys(self.groups, 2**31 - 1)  # the same for any number of groups: that varies
        self.tiles = {loop.name: extents[loop.dim][1] for loop in loops if isinstance(loop, ir.Tile)}
        assigned = [s for s in ir.statements(kernel.body) if isinstance(s, ir.Assign)]
        count = Counter(s.name for s in assigned)
        self.values = {name: [s.value for s in assigned if s.name == name] for name in count}
        # Of a variable that is assigned once, what it is holds wherever it is read.
        self.definitions = {s.name: s.value for s in assigned if count[s.name] == 1}

    def block(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        return tuple(map(self.statement, body))

    def statement(self, stmt: ir.Stmt) -> ir.Stmt:
        match stmt:
            case ir.Assign():
                return replace(stmt, value=self.expr(stmt.value))
            case ir.Store():
                index = tuple(self.expr(i) if isinstance(i, Expr) else i for i in stmt.index)
                index = self.index(stmt.tensor, index, stmt.loc, None)
                return replace(stmt, index=index, value=self.expr(stmt.value))
            case ir.For():
                start, stop = self.expr(stmt.start), self.expr(stmt.stop)
                if self.span(start)[1] > self.extents[stmt.over.dim][0] and self.grows(start):
                    # Rounded up to a tile's start, it would not fit in 32 bits.
                    size = ir.Size(stmt.over.dim, type=start.type, loc=stmt.loc)
                    start = ir.Binary("min", start, size, type=start.type, loc=stmt.loc)
                body = self.block(stmt.body) if self.extents[stmt.over.dim][1] else stmt.body  # else it never runs
                return replace(stmt, start=start, stop=stop, body=body)
        raise AssertionError(stmt)

    def expr(self, node: Expr) -> Expr:
        node = ir.with_children(node, tuple(map(self.expr, ir.children(node))))
        if not isinstance(node, ir.Read):
            return node
        index = self.index(node.tensor, node.index, node.loc, node.when)
        asked = any(isinstance(i, ir.Checked) for i in index)
        return replace(node, index=index, when=node.when if asked else None)

    def index(
        self, tensor: str, index: tuple[ir.Axis | Expr, ...], loc: ir.Loc, when: Expr | None
    ) -> tuple[ir.Axis | Expr, ...]:
        dims = self.kernel.tensor(tensor).dims
        return tuple(
            i if isinstance(i, ir.Axis) else self.entry(tensor, dim, i, loc, when)
            for i, dim in zip(index, dims, strict=True)
        )

    def entry(self, tensor: str, dim: str, given: Expr, loc: ir.Loc, when: Expr | None) -> Expr:
        """An index, or a tile of them: itself where it is seen to be one of its dim."""
        x, at = (given.x, given.loc) if isinstance(given, ir.Checked) else (given, given.loc)
        low, high = self.span(x)
        extent, most = self.extents[dim]
        dim_of = x.axis.dim if isinstance(x, ir.Lanes) else self.dim_of.get(x.name) if isinstance(x, ir.Index) else None
        own = dim_of == dim  # of this dim, whatever it is
        if own or self.is_edge(x, dim) or (low >= 0 and high < extent):
            return x
        if low == high and extent == most and when is None:
            allowed = f"indices of {dim} go from 0 to {extent - 1}" if extent else f"{dim} has no index"
            what = f"index {low} of {_shown(self.kernel.tensor(tensor))} along {dim}, whose extent is {extent}"
            place = at if at != ir.NOWHERE else loc
            raise IndexRangeError(place.explain(f"{self.kernel.name}: {what}", allowed))
        return ir.Checked(x, tensor, dim, type=x.type, loc=at if isinstance(given, ir.Checked) else loc)

    def is_edge(self, x: Expr, dim: str) -> bool:
        """Whether an index is where a tile's group begins or ends, of the dim that says so of groups."""
        match x:
            case ir.Binary(op="add", a=ir.Index(name=name), b=ir.Const(value=0 | 1)) | ir.Index(name=name):
                return self.groups.get(name) == dim
        return False

    def grows(self, e: Expr, sign: int = 1, through: frozenset[str] = frozenset()) -> bool:
        """Whether a loaded number, an argument or a loop's turns make a bound larger; smaller, where ``sign`` is -1.

        An argument that is taken away is not looked at here but where its value is known (``passes.ranges``).
        """
        match e:
            case ir.Load() | ir.Gather():
                return True
            case ir.Param():
                return sign > 0
            case ir.Var(name=name):
                return name in through or any(self.grows(v, sign, through | {name}) for v in self.values.get(name, ()))
            case ir.Unary(op="neg", x=x):
                return self.grows(x, -sign, through)
            case ir.Binary(op="sub", a=a, b=b):
                return self.grows(a, sign, through) or self.grows(b, -sign, through)
            case ir.Binary(op="min" | "max" as op, a=a, b=b):
                both = (op == "min") == (sign > 0)
                return (all if both else any)(self.grows(x, sign, through) for x in (a, b))
            case ir.Where(a=a, b=b):
                return self.grows(a, sign, through) or self.grows(b, sign, through)
        return any(self.grows(child, sign, through) for child in ir.children(e))

    # -------------------------------------------------------------- intervals
    def span(self, e: Expr) -> Interval:
        """The least and greatest value of a whole number, or of the elements of a tile."""
        low, high = self._span(e)
        least, most = limits(e.type.dtype)
        return (low, high) if least <= low and high <= most else (least, most)  # what does not fit may be anything

    def _span(self, e: Expr) -> Interval:
        anything = limits(e.type.dtype)
        match e:
            case ir.Const(value=value):
                return int(value), int(value)
            case ir.Size(dim=dim):
                return self.extents[dim]
            case ir.Index(name=name) if name in self.indices:
                return 0, self.indices[name] - 1
            case ir.Start(tile=tile):
                return 0, self.tiles[tile] - 1
            case ir.Lanes(axis=axis):
                return 0, self.extents[axis.dim][1] - 1
            case ir.Stop(tile=tile) | ir.Count(tile=tile):
                return 1, self.tiles[tile]
            case ir.Before(tile=tile):
                return 0, self.tiles[tile] - 1
            case ir.Var(name=name) if name in self.definitions:
                return self.span(self.definitions[name])
            case ir.Checked(x=x) | ir.Expand(x=x) | ir.Transpose(x=x) | ir.Full(value=x):
                return self.span(x)
            case ir.Cast(x=x) if x.type.dtype.kind == "int":
                return self.span(x)
            case ir.Where(a=a, b=b):
                return around([self.span(a), self.span(b)]) or anything
            case ir.Unary(op=op, x=x) if x.type.dtype.kind == "int":
                return of_one(op, self.span(x)) or anything
            case ir.Binary(op=op, a=a, b=b) if a.type.dtype.kind == "int":
                return of_two(op, self.span(a), self.span(b)) or anything
        return anything
