"""Draws stores: each to an output of its own, at places that no other program has."""

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
        """What is stored: often what variables hold, brought to the shape."""
        known = [y.expr for y in self.variables if y.final and y.expr.kind == kind == "float" and y.expr.sound
                 and set(y.expr.shape) <= set(shape) and [a for a in shape if a in y.expr.shape] == list(y.expr.shape)
                 and len(set(y.expr.shape)) == len(y.expr.shape)]  # fmt: skip
        x = self.value(shape, kind, self.upto(2), not self.smooth)
        for y in self.draw_some(known):
            y = v.lengthened(y, tuple(a in y.shape for a in shape), shape) if y.shape else y
            if (total := v.plus(x, y)).sound:
                x = total
        return x

    def draw_some(self, known: list[Expr]) -> list[Expr]:
        return [x for x in known if self.upto(3) < 3][:4]

    def out_type(self, x: Expr) -> str:
        if x.kind == "bool":
            return "bool"
        if x.kind == "int":
            return x.dtype if x.most > 2.0**24 or self.upto(2) < 2 else "f32"
        if x.exact and x.sound and self.may("stored as integers", 8):
            return "i32"
        narrow = [d for d in ("bf16", "f16", "f8e4m3", "f8e5m2") if x.most <= v.LARGEST[d]]
        return self.pick(narrow) if narrow and self.upto(3) == 3 else "f32"
