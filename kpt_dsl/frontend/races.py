"""Every element is stored by one program: programs run in any order, so that of several values chance would choose one.

A store is right where each parallel loop stands in its index: by its tile; by its index, alone, moved, numbered along with
others as in ``b * kd.size("H") + h``, or as a place that was looked up for it; or through a sequential loop that it deals out,
whose bounds both follow it.
"""

from kpt_dsl import ir
from kpt_dsl.frontend.source import fail
from kpt_dsl.ir import Expr
from kpt_dsl.passes import fold


def check_races(kernel: ir.Kernel) -> None:
    """Raises KernelError for a store that several programs may make to one place."""
    _Races(kernel).block(kernel.body, ())


class _Races:
    """Walks a kernel, knowing what scalars stand for and which loops are around."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.values: dict[str, Expr] = {}

    def block(self, body: tuple[ir.Stmt, ...], loops: tuple[ir.For, ...]) -> None:
        for stmt in body:
            match stmt:
                case ir.Assign(name=name, value=value):
                    self.values[name] = self.plain(value)
                case ir.Store() if not stmt.add:
                    self.check(stmt, loops)
                case ir.For():
                    assigned = {s.name for s in ir.statements(stmt.body) if isinstance(s, ir.Assign)}
                    for name in assigned:
                        self.values.pop(name, None)
                    self.block(stmt.body, (*loops, stmt))
                    for name in assigned:
                        self.values.pop(name, None)

    def plain(self, e: Expr) -> Expr:
        """An expression with what its scalars stand for in their place."""
        if isinstance(e, ir.Checked):
            return self.plain(e.x)
        if isinstance(e, ir.Var):
            return self.values.get(e.name, e)
        return ir.with_children(e, tuple(self.plain(child) for child in ir.children(e)))

    def is_one(self, bound: Expr, index: str, apart: set[str]) -> bool:
        """Whether a bound is the same in all programs along ``index`` that store to what is told apart by ``apart`` only."""
        steps = _names(bound) - {g.name for g in self.kernel.grid if g.name != index}
        return steps <= apart - {index} and not any(isinstance(x, ir.Var) for x in ir.walk(bound))

    def check(self, store: ir.Store, loops: tuple[ir.For, ...]) -> None:
        index = tuple(self.plain(i) if isinstance(i, Expr) else i for i in store.index)
        apart = {name for entry in index for name in _told_apart(entry)}
        for loop in reversed(loops):  # inner ones first: an outer one may deal out what they deal out again
            if loop.over.name in apart:
                start, stop = self.plain(loop.start), self.plain(loop.stop)
                if loop.share is not None:
                    start, stop = _dealt_out(start), _dealt_out(stop)
                    if self.is_one(start, loop.share.index, apart) and self.is_one(stop, loop.share.index, apart):
                        apart.add(loop.share.index)
                start, stop = _unclamped(start), _unclamped(stop)
                apart |= {name for name in _names(start) & _names(stop) if _deals(start, stop, name)}
        for each in self.kernel.grid:
            if each.name not in apart:
                tensor = self.kernel.tensor(store.tensor)
                fail(
                    store.loc,
                    f"{store.tensor}[{', '.join(tensor.dims)}] is stored without {each.name} in its index: every program along "
                    f"{each.dim} stores to the same place, in any order",
                    f"index it with {each.name}, or add the programs' values up on a cleared float32 output: "
                    f"{store.tensor}[…] += value",
                )


def _dealt_out(bound: Expr) -> Expr:
    """The end of what is dealt out, of that of a share (``frontend.shares``)."""
    assert isinstance(bound, ir.Binary)
    return bound.b


def _unclamped(bound: Expr) -> Expr:
    """A bound before it was kept within the dim."""
    match bound:
        case ir.Binary(op="max", a=inner, b=ir.Const(value=0)) | ir.Binary(op="min", a=inner, b=ir.Size()):
            return _unclamped(inner)
    return bound


def _deals(start: Expr, stop: Expr, name: str) -> bool:
    """Whether steps of the loop ``name`` visit other indices each: from where a tile starts to where it stops, from one number
    to that of the next step, or between places that were loaded, which are the caller's word."""
    if isinstance(start, ir.Start) or isinstance(stop, ir.Stop):
        return isinstance(start, ir.Start) and isinstance(stop, ir.Stop) and start.tile == stop.tile == name
    if all(any(isinstance(x, ir.Load) and name in _names(x) for x in ir.walk(bound)) for bound in (start, stop)):
        return True
    index = next((x for x in ir.walk(start) if isinstance(x, ir.Index) and x.name == name), None)
    return index is not None and stop == fold.rebuild(start, {index: fold.add(index, ir.scalar(1))})


def _told_apart(entry: ir.Axis | Expr) -> set[str]:
    """The loops whose steps an index tells apart."""
    if isinstance(entry, ir.Axis):
        return {entry.tile} if entry.tile is not None else set()
    names = _names(entry)
    if len(names) < 2:
        return names if _moves(entry) else set()
    match entry:
        case ir.Load():
            return {name for i in entry.index for name in _told_apart(i)}
        # Rows of a block of as many as there are: row-major numbers
        case ir.Binary(op="add", a=ir.Binary(op="mul", a=outer, b=ir.Size()), b=ir.Index(name=name)):
            return _told_apart(outer) | {name}
    return set()


def _moves(e: Expr) -> bool:
    """Whether an expression of one index is another number for each of its values."""
    match e:
        case ir.Index():
            return True
        case ir.Load():  # that no two are equal is the caller's word
            return any(isinstance(i, Expr) and _moves(i) for i in e.index)
        case ir.Unary(op="neg", x=x) | ir.Cast(x=x):
            return _moves(x)
        case ir.Binary(op="add" | "sub", a=a, b=b):
            return _moves(a) != _moves(b) and not (_names(a) and _names(b))
        case ir.Binary(op="mul", a=a, b=ir.Const(value=value)) | ir.Binary(op="mul", a=ir.Const(value=value), b=a):
            return value != 0 and _moves(a)
        case ir.Binary(op="mul", a=a, b=ir.Size()) | ir.Binary(op="mul", a=ir.Size(), b=a):
            return _moves(a)
    return False


def _names(e: Expr) -> set[str]:
    """The loops that a scalar depends on."""
    found: set[str] = set()
    for x in ir.walk(e):
        match x:
            case ir.Index(name=name):
                found.add(name)
            case ir.Start(tile=tile) | ir.Stop(tile=tile) | ir.Before(tile=tile) | ir.Count(tile=tile):
                found.add(tile)
            case ir.Lanes(axis=axis) if axis.tile is not None:
                found.add(axis.tile)
    return found
