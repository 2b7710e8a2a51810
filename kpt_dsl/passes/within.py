"""Whether a loop for some rows of a tile lies within the loop for all of them: its stop then rises with where the tile stops.

Rows that are shared out can end their loop where their own need it.
"""

from collections.abc import Iterable

from kpt_dsl import ir
from kpt_dsl.ir import Expr


def ends_within(scalars: Iterable[ir.Assign], loop: ir.For, tile: str) -> bool:
    """Whether the stop of ``loop``, which may read ``scalars``, is seen to depend on where ``tile`` stops, and to rise with it;
    where steps are counted from the loop's start, that must be the same for all rows."""
    rises: dict[str, bool | None] = {}
    for stmt in scalars:
        rises[stmt.name] = _rises(stmt.value, tile, rises)
    counted_alike = not loop.at_start or _rises(loop.start, tile, rises) is False
    return counted_alike and _rises(loop.stop, tile, rises) is True


def _rises(e: Expr, tile: str, known: dict[str, bool | None]) -> bool | None:
    """True where it does, False where it does not depend on the tile, None where neither is seen."""
    match e:
        case ir.Where(ir.Binary("lt", ir.Start(a), ir.Stop(b)), there, ir.Const(0)) if a == b == tile:
            return _rises(there, tile, known)
        case ir.Stop(tile=name) if name == tile:
            return True
        case ir.Start(tile=name) | ir.Block(tile=name) | ir.Count(tile=name) | ir.Before(tile=name) if name == tile:
            return None
        case ir.Var(name=name):
            return known.get(name)
    parts = [_rises(part, tile, known) for part in ir.children(e)]
    if None in parts:
        return None
    if not any(parts):
        return False
    if isinstance(e, ir.Binary) and (e.op in ("add", "min", "max") or (e.op == "sub" and not parts[1])):
        return True
    return None
