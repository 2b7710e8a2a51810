"""Halves of tiles as tiles of their own, for machines that cannot take a tile apart along its last axis, nor put one together.

Half of what was loaded is loaded alone, what is computed of each half by itself is computed of halves, and what was joined is
stored in two parts.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kpt_dsl import ir
from kpt_dsl.ir import Expr, Type
from kpt_dsl.passes import fold


def apart(kernel: ir.Kernel) -> ir.Kernel:
    """``kernel`` without ``Half`` and ``Join``, but where one is of what has no such halves."""
    if not any(isinstance(e, ir.Half | ir.Join) for e in ir.every_expr(kernel.body)):
        return kernel
    assigned = [s for s in ir.statements(kernel.body) if isinstance(s, ir.Assign)]
    count = Counter(s.name for s in assigned)
    once = {s.name: s.value for s in assigned if count[s.name] == 1}
    lasting = {n: e for n, e in once.items() if all(x.name in once for x in ir.walk(e) if isinstance(x, ir.Var))}
    return replace(kernel, body=fold.without_unused(_Halves(lasting).block(kernel.body), ()))


@dataclass(frozen=True)
class _Halves:
    """``values``: of variables that hold the same wherever they are read."""

    values: Mapping[str, Expr]

    def block(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        done: list[ir.Stmt] = []
        for stmt in body:
            match stmt:
                case ir.Store() if self.joined(stmt.value):
                    done += [self.part(stmt, which) for which in (0, 1)]
                case ir.For():
                    done.append(replace(stmt, body=self.block(stmt.body)))
                case ir.Store():
                    done.append(replace(stmt, value=self.expr(stmt.value)))
                case ir.Assign():
                    done.append(replace(stmt, value=self.expr(stmt.value)))
        return tuple(done)

    def joined(self, e: Expr) -> bool:
        """Whether a tile was put together of halves, or computed of one that was, each half by itself."""
        match e:
            case ir.Var(name=name):
                return name in self.values and self.joined(self.values[name])
            case ir.Unary() | ir.Binary() | ir.Where() | ir.Cast():
                return any(map(self.joined, ir.children(e)))
            case ir.Reduce(x=x, axis=axis):
                return axis < len(e.type.shape) and self.joined(x)
        return isinstance(e, ir.Join)

    def part(self, store: ir.Store, which: int) -> ir.Store:
        value = self.expr(self.half(store.value, which))
        return replace(store, index=_picked(store.index, which), value=value)

    def expr(self, e: Expr) -> Expr:
        if isinstance(e, ir.Half):
            half = self.half(e.x, e.which)
            return e if half == e else self.expr(half)
        return ir.with_children(e, tuple(map(self.expr, ir.children(e))))

    def half(self, e: Expr, which: int) -> Expr:
        """One half of a tile, or of a scalar that meets one."""
        last = len(e.type.shape) - 1
        kind = Type(e.type.dtype, e.type.shape[:-1])
        match e:
            case _ if last < 0:
                return e
            case ir.Join():
                return (e.a, e.b)[which]
            case ir.Expand(x=x, axis=axis) if axis == last:
                return x
            case ir.Expand(x=x):
                x = self.half(x, which)
                return replace(e, x=x, type=kind) if x.type.shape else x
            case ir.Lanes():
                return ir.scalar(which, e.loc)
            case ir.Load():
                return replace(e, index=_picked(e.index, which), type=kind)
            case ir.Full():
                return replace(e, type=kind) if kind.shape else e.value
            case ir.Var(name=name) if name in self.values:
                return self.half(self.values[name], which)
            case ir.Reduce(x=x, axis=axis) if axis <= last:
                return replace(e, x=self.half(x, which), type=kind)
            case ir.Unary() | ir.Binary() | ir.Where() | ir.Cast():
                parts = tuple(self.half(x, which) for x in ir.children(e))
                return replace(ir.with_children(e, parts), type=kind)
        return ir.Half(e, which, type=kind, loc=e.loc)


def _picked(index: tuple[ir.Axis | Expr, ...], which: int) -> tuple[ir.Axis | Expr, ...]:
    """An index with one half of its last axis picked."""
    at = max(i for i, entry in enumerate(index) if isinstance(entry, ir.Axis))
    return (*index[:at], ir.scalar(which), *index[at + 1 :])
