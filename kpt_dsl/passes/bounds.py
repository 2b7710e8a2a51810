"""Loop bounds that turn out to be plain: a variable that can only hold a dim's size, or a number, gives way to it.

A kernel often names its bounds and narrows them under static conditions (``last = kd.size("N")``, then ``if causal: …``).
Where no condition held, the loop runs over the whole dim, and saying so spares it masks and an edge loop.
"""

from dataclasses import replace

from kpt_dsl import ir
from kpt_dsl.passes import fold
from kpt_dsl.same import remembered

Known = dict[str, ir.Expr | None]
"""Scalar variable -> the size or number that it holds at this point, None when it holds neither."""


@remembered(1024)
def settle(kernel: ir.Kernel) -> ir.Kernel:
    """``kernel`` with plain bounds in its outermost loops, and without the variables that nobody reads any more."""
    known: Known = {}
    body: list[ir.Stmt] = []
    for stmt in kernel.body:
        if isinstance(stmt, ir.Assign):
            known[stmt.name] = _plain(stmt.value, known)
        elif isinstance(stmt, ir.For):
            start, stop = _plain(stmt.start, known), _plain(stmt.stop, known)
            stmt = replace(stmt, start=start or stmt.start, stop=stop or stmt.stop)
            known |= {s.name: None for s in ir.statements(stmt.body) if isinstance(s, ir.Assign)}
        body.append(stmt)
    return replace(kernel, body=fold.without_unused(tuple(body), ()))


def _plain(e: ir.Expr, known: Known) -> ir.Expr | None:
    """The size or number that a scalar expression comes to, None when it is something else."""
    match e:
        case ir.Const() | ir.Size():
            return e
        case ir.Var(name=name):
            return known.get(name)
        case ir.Binary(op="min" | "max" as op, a=a, b=b):
            left, right = _plain(a, known), _plain(b, known)
            if left is not None and right is not None:
                both = fold.smallest(left, right) if op == "min" else fold.largest(left, right)
                return both if isinstance(both, ir.Const | ir.Size) else None
    return None
