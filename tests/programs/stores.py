"""Draws stores: each to an output of its own, at places that no other program has."""

import re

from tests.programs import values as v
from tests.programs.expressions import Expressions
from tests.programs.program import Tensor
from tests.programs.values import Expr


class Stores(Expressions):
    """``store`` may stand in loops; ``put`` is a store to a given place."""

    def store(self) -> Tensor | None:
        """To an output of its own, at a place of this program's (and turn's) own."""
        loops = list(self.loops)
        if any(loop.mask for loop in loops):
            return None
        dims: list[tuple[str, str]] = []
        for loop in loops:
            if loop.dim in [d for d, _ in dims]:
                return None
            dims.insert(self.upto(len(dims)), (loop.dim, loop.name))
        while not dims or (len(dims) < 3 and self.upto(2) == 2):
            dim = self.some_dim(but=[loop.dim for loop in loops])
            if dim in [d for d, _ in dims]:
                break
            shape = [n for d, n in dims if n == d or any(loop.name == n and loop.tiled for loop in loops)]
            if not self.fits((*shape, dim)):
                break
            dims.insert(self.upto(len(dims)), (dim, dim))
        shape = tuple(n for d, n in dims if n == d or any(loop.name == n and loop.tiled for loop in loops))
        if not self.fits(shape):
            return None
        kind = self.pick(["float", "float", "float", "int", "bool"])
        entries = ", ".join(":" if n == d else n for d, n in dims)
        return self.put(tuple(d for d, _ in dims), entries, shape, kind)

    def put(self, dims: tuple[str, ...], entries: str, shape: tuple[str, ...], kind: str) -> Tensor:
        x = self.final(shape, kind)
        out = self.new_tensor(dims, self.out_type(x), role="out", off=x.off)
        self.line(f"{out.name}[{entries}] = {x.text}")
        return out

    def final(self, shape: tuple[str, ...], kind: str) -> Expr:
        """What is stored: something new, and what variables hold that nothing has read."""
        x = self.value(shape, kind, self.upto(2), not self.smooth)
        return x if kind == "bool" else self.with_unread(x, 0)

    def with_unread(self, x: Expr, level: int) -> Expr:
        """``x`` plus variables from ``level`` loops inwards that nothing has read: what is never seen cannot be wrong."""
        for variable in [y for y in self.variables if y.final and y.level >= level and not self.is_read(y.expr.text)][
            -5:
        ]:
            y = self.brought_to(variable.expr, x.shape)
            if y is not None and (total := v.plus(x, y)).sound and total.shape == x.shape:
                x = total
        return x

    def is_read(self, name: str) -> bool:
        """Whether a line names a variable, other than to give it a value."""
        named = re.compile(rf"\b{name}\b")
        return any(named.search(line) and not re.match(rf"\s*{name} \+?= ", line) for line in self.lines)

    def brought_to(self, y: Expr, shape: tuple[str, ...]) -> Expr | None:
        """A variable's value with axes that a shape has: others are reduced, and missing ones are left to broadcasting."""
        if y.kind == "bool":
            y = v.either(y, v.number(1.0), v.number(0.0))
        for at in reversed(range(len(y.shape))):
            axis = y.shape[at]
            if axis not in shape or axis in y.shape[:at]:
                if self.is_tile(axis) or not y.sound:
                    return None
                y = self.reduced(y, self.pick(["sum", "max", "min"]), at)
        if len(y.shape) == 2 and [a for a in shape if a in y.shape] != list(y.shape):
            y = v.replace(y, text=f"{y.text}.T", shape=y.shape[::-1])
        if [a for a in shape if a in y.shape] != list(y.shape) or len(set(shape)) < len(shape):
            return None
        return v.lengthened(y, tuple(a in y.shape for a in shape), shape) if y.shape else y

    def out_type(self, x: Expr) -> str:
        if x.kind == "bool":
            return "bool"
        if x.kind == "int":
            if self.may("bytes", 10):  # which wraps
                return self.pick(["i8", "u8"])
            return x.dtype if x.most > 2.0**24 or self.upto(2) < 2 else "f32"
        if x.exact and x.sound and self.may("stored as integers", 8):
            return "i32"
        narrow = [d for d in ("bf16", "f16", "f8e4m3", "f8e5m2") if x.most <= v.LARGEST[d]]
        return self.pick(narrow) if narrow and self.upto(3) == 3 else "f32"
