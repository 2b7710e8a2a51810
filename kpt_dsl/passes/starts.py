"""Loops that begin at a place that was loaded: their tiles are counted from there, so that only the last one has an edge.

Rounded down to a tile's start, such a loop would have a masked head as well, and two that nest nine copies of a body where four
do. Starts that are computed stay rounded down: they mostly fall on tiles, or a mask tells how far off they are. So do loops
whose tiles lie along the last dim of a tile that is loaded: from any start on, its elements have an address each, where from a
multiple of the block one does for many.
"""

from dataclasses import replace

from kpt_dsl import ir
from kpt_dsl.ir import Expr


def at_loaded_starts(kernel: ir.Kernel) -> ir.Kernel:
    """``kernel`` with ``at_start`` set on the loops over tiles whose start was loaded, and their bounds in variables."""
    return replace(kernel, body=_Starts(kernel).block(kernel.body))


class _Starts:
    """One walk over a kernel. ``tiles``: those that begin at a loaded place."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.values: dict[str, list[Expr]] = {}
        for stmt in ir.statements(kernel.body):
            if isinstance(stmt, ir.Assign):
                self.values.setdefault(stmt.name, []).append(stmt.value)
        self.tiles: set[str] = set()

    def block(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        done: list[ir.Stmt] = []
        for stmt in body:
            if isinstance(stmt, ir.For):
                loaded = isinstance(stmt.over, ir.Tile) and not stmt.share and self.is_loaded(stmt.start, frozenset())
                if loaded and not _along_last(stmt):
                    self.tiles.add(stmt.over.name)
                    first, last = self.named(stmt, stmt.start, "first", done), self.named(stmt, stmt.stop, "last", done)
                    stmt = replace(stmt, start=first, stop=last, at_start=True)
                stmt = replace(stmt, body=self.block(stmt.body))
            done.append(stmt)
        return tuple(done)

    def is_loaded(self, e: Expr, through: frozenset[str]) -> bool:
        """Whether a scalar is made of loaded ones, or of where a tile begins that begins at one."""
        match e:
            case ir.Load():
                return True
            case ir.Start(tile=tile):
                return tile in self.tiles
            case ir.Where(a=a, b=b):  # between what is not loaded, a loaded condition only chooses
                return self.is_loaded(a, through) or self.is_loaded(b, through)
            case ir.Var(name=name):
                return name not in through and any(self.is_loaded(v, through | {name}) for v in self.values.get(name, ()))
        return any(self.is_loaded(child, through) for child in ir.children(e))

    def named(self, loop: ir.For, bound: Expr, end: str, done: list[ir.Stmt]) -> Expr:
        """A bound of a loop, which is read more than once: a variable, where it is not one or plain."""
        if isinstance(bound, ir.Var | ir.Size | ir.Const):
            return bound
        name = f"{loop.over.name}_{end}"
        while name in self.values:
            name += "_"
        self.values[name] = [bound]
        done.append(ir.Assign(name, bound, loc=loop.loc))
        return ir.Var(name, type=bound.type)


def _along_last(loop: ir.For) -> bool:
    """Whether a tile of several axes is loaded whose last one is the loop's."""
    loads = (e for e in ir.every_expr(loop.body) if isinstance(e, ir.Load))
    return any(e.index[-1] == loop.tile.axis and len(e.type.shape) > 1 for e in loads)
