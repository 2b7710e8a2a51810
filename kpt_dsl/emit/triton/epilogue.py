"""An epilogue in parts: what follows a kernel's last loop, done for one block of columns after the other.

A product's accumulator fills the registers, and whatever its epilogue adds (a bias, an activation's temporaries, the staging
of the store) comes on top. Cut into column blocks before the epilogue, only one block's temporaries live at a time: for sm_90,
a 128x256 tile with bias and GELU takes 188 registers a thread in two parts, and 255 and spills in one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from kpt_dsl import ir


@dataclass(frozen=True)
class Epilogue:
    """A kernel's body, taken apart at its last loop.

    ``main``: up to and with the loop; ``once``: what follows and has no columns; ``parted``: what follows and is done part by
    part; ``cut``: the variables to cut into parts first. Values with one element a column that only the epilogue reads (a
    bias, loaded ahead of the loop) move to it: held across the loop, each thread would keep all that its columns need.
    """

    columns: ir.Axis
    main: tuple[ir.Stmt, ...]
    once: tuple[ir.Stmt, ...]
    parted: tuple[ir.Stmt, ...]
    cut: tuple[ir.Var, ...]


def find(kernel: ir.Kernel) -> Epilogue | None:
    """The epilogue of a kernel; None where it has none, or one whose columns cannot be cut apart."""
    last = max((i for i, s in enumerate(kernel.body) if isinstance(s, ir.For)), default=-1)
    before, after = kernel.body[: max(last, 0)], kernel.body[last + 1 :]
    columns, loop = _columns(after), kernel.body[last]
    if columns is None or not isinstance(loop, ir.For):
        return None
    parted = tuple(s for s in after if _touches(s, columns))
    once = tuple(s for s in after if s not in parted)
    once_names = [s.name for s in once if isinstance(s, ir.Assign)]
    late = _late(before, (loop, *once), columns)
    main = (*(s for s in before if s not in late), loop)
    parted = (*late, *parted)
    made = {s.name for s in ir.statements(main) if isinstance(s, ir.Assign)}
    reads = {x.name: x for x in _variables(parted)}
    cut = tuple(x for x in reads.values() if columns in x.type.shape and x.name in made)
    apart = all(_parts_alone(x, columns) for s in parted for top in ir.expressions(s) for x in ir.walk(top))
    if not apart or len(set(once_names)) < len(once_names) or any(len(x.type.shape) != 2 for x in cut):
        return None
    return Epilogue(columns, main, once, parted, cut)


def _late(before: tuple[ir.Stmt, ...], others: tuple[ir.Stmt, ...], columns: ir.Axis) -> tuple[ir.Assign, ...]:
    """The statements ahead of the loop that make one value a column, which only what is done part by part reads."""
    found = [s for s in before if isinstance(s, ir.Assign) and s.value.type.shape == (columns,)]
    rest = tuple(s for s in before if s not in found)
    elsewhere = {x.name for x in _variables((*rest, *others))}
    assigned = [s.name for s in ir.statements((*before, *others)) if isinstance(s, ir.Assign)]
    inside = {x.name for x in _variables(tuple(found))}
    return tuple(s for s in found if s.name not in elsewhere | inside and assigned.count(s.name) == 1)


def _variables(body: tuple[ir.Stmt, ...]) -> list[ir.Var]:
    return [x for x in ir.every_expr(body) if isinstance(x, ir.Var)]


def sides(parts: int) -> list[str]:
    """What the parts are called, from left to right."""
    names = [""]
    while len(names) < parts:
        names = [f"{name}_{side}" for name in names for side in ("left", "right")]
    return names


def _columns(after: tuple[ir.Stmt, ...]) -> ir.Axis | None:
    """The tiled last axis of the stores, if all two-dimensional ones have the same."""
    found = {s.index[-1] for s in after if isinstance(s, ir.Store) and len(s.value.type.shape) == 2}
    axis = found.pop() if len(found) == 1 else None
    return axis if isinstance(axis, ir.Axis) and axis.tile is not None else None


def _touches(stmt: ir.Stmt, columns: ir.Axis) -> bool:
    return any(columns in x.type.shape for top in ir.expressions(stmt) for x in ir.walk(top)) or (
        isinstance(stmt, ir.Store) and columns in stmt.index
    )


def _parts_alone(x: ir.Expr, columns: ir.Axis) -> bool:
    """Whether each column of an expression depends on the same column of its operands only."""
    match x:
        case ir.Reduce(x=inner, axis=axis):
            return inner.type.shape[axis] != columns
        case ir.Dot() | ir.Transpose():
            return all(columns not in c.type.shape for c in ir.children(x))
        case ir.Var():
            return columns not in x.type.shape[:-1]
    return True


def narrow(stmt: ir.Stmt, axes: Mapping[ir.Axis, ir.Axis], names: Mapping[str, str]) -> ir.Stmt:
    """A statement over other axes, with other variables."""
    tiles = {old.tile: new.tile for old, new in axes.items()}

    def rebuilt(node: Any) -> Any:
        match node:
            case ir.Axis():
                return axes.get(node, node)
            case tuple():
                return tuple(rebuilt(x) for x in node)
            case ir.Loc():
                return node
        if not is_dataclass(node) or isinstance(node, type):
            return node
        changed = {f.name: rebuilt(getattr(node, f.name)) for f in fields(node)}
        if isinstance(node, ir.Var | ir.Assign):
            changed["name"] = names.get(node.name, node.name)
        if isinstance(node, ir.Start | ir.Stop | ir.Block | ir.Count | ir.Before):
            changed["tile"] = tiles.get(node.tile, node.tile)
        return replace(node, **changed)

    result: ir.Stmt = rebuilt(stmt)
    return result
