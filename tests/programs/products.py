"""Draws kernels around one loop of matrix products: a lone product with an epilogue, or two in a chain, as attention has them.

Many have the form that warp-specialised schedules take: 16-bit operands that descriptors can hold, no other tiles loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.generated.arrays import Layout
from tests.programs import values as v
from tests.programs.program import Tensor
from tests.programs.scope import Loop
from tests.programs.statements import Statements
from tests.programs.values import Expr

ROWS = (64, 100, 33, 130, 64, 7)
SIDES = (64, 104, 16, 64, 40)
DEPTHS = (64, 32, 128)

FUNCTIONS = ("exp", "tanh", "sigmoid", "erf", "ndtr", "log", "sqrt", "sin", "cos")


class Products(Statements):
    """``lone`` and ``chain`` draw the grid, the loop and the store."""

    def matrix(self, name: str, dims: tuple[str, ...], dtype: str, most: int = 2) -> Tensor:
        """An operand, contiguous as descriptors want it in most cases."""
        layout = self.layout(len(dims)) if self.upto(9) == 9 else Layout(tuple(range(len(dims))))
        tensor = Tensor(name, dims, dtype, most=most, layout=layout, odd=self.odd and self.upto(3) == 3)
        self.tensors.append(tensor)
        return tensor

    def elementwise(self, x: Expr, steps: int) -> Expr:
        """What epilogues do: bias, scale, masks, an activation."""
        for _ in range(steps):
            way = self.upto(6)
            if way == 0:
                at = self.upto(1)
                keep = (at == 0, at == 1)
                axis = x.shape[at]
                bias = self.load((axis,), "float") or self.float_argument()
                y = v.plus(x, v.lengthened(bias, keep, x.shape) if bias.shape else bias)
            elif way == 1:
                y = v.times(x, self.float_argument())
            elif way == 2:
                y = v.larger(x, v.number(0.0), "maximum")
            elif way == 3 and self.smooth:
                y = v.smooth(self.pick(FUNCTIONS), x)
            elif way == 4:
                y = v.either(self.causal(x.shape), x, v.number(0.0))
            elif way == 5:
                y = v.rounded(x) if x.exact and self.upto(1) else v.halved(x, 2)
            else:
                y = v.either(v.compared(x, v.number(1.0), "<"), x, v.number(1.0)) if x.exact else v.negative(x)
            if y.sound and y.text.count(x.text) == 1:
                x = y
            elif y.sound:
                x = self.assign(y).expr
        return x

    def causal(self, shape: tuple[str, ...]) -> Expr:
        """A condition on the indices of a tile's axes; true where an axis is a whole dim."""
        row, column = f"{shape[0]}.index[:, None]", f"{shape[1]}.index[None, :]"
        if not self.is_tile(shape[1]):
            return Expr(f"({row} < 20)", "bool", (shape[0], v.UNIT))
        c = self.pick([1, 5, 17])
        texts = [f"({column} <= {row})", f"({column} > {row} - {c})", f"(kd.abs({row} - {column}) < {c})"]
        return Expr(self.pick(texts), "bool", shape)

    def grid_line(self, batch: bool, tiles: list[tuple[str, str]]) -> None:
        over = ['"B"'] * batch + [f'kd.tile("{dim}")' for _, dim in tiles]
        names = ["b"] * batch + [name for name, _ in tiles]
        if batch:
            self.extents["B"] = self.pick([1, 2])
        self.line(f"for {', '.join(names)} in kd.parallel({', '.join(over)}):")
        if batch:
            self.loops.append(Loop("b", "B", False))
        self.loops.extend(Loop(name, dim, True) for name, dim in tiles)
        self.grid = len(self.loops)
        self.branches = 1 - self.grid
        self.seen = [(loop.dim, loop.tiled, 0) for loop in self.loops]

    @contextmanager
    def around(self, name: str, dim: str, bounds: str) -> Iterator[None]:
        """Lines in a loop over tiles."""
        self.line(f'for {name} in kd.sequential(kd.tile("{dim}"){bounds}):')
        self.seen.append((dim, True, len(self.loops)))
        self.loops.append(Loop(name, dim, True))
        yield
        self.loops.pop()

    def lone(self) -> None:
        """y = epilogue(a @ b)"""
        dtype = self.pick(["bf16", "f16", "bf16", "f16", "bf16", "f8e4m3", "f8e5m2", "f32"])
        flipped = (self.upto(1) == 1, self.upto(1) == 1)
        if dtype.startswith("f8") and self.upto(1):
            flipped = (False, False)
        for dim, extents in (("M", SIDES if flipped[0] else ROWS), ("N", SIDES), ("K", SIDES)):
            self.extents[dim] = self.pick(extents)
        if self.empty:
            self.extents[self.pick(["K", "M", "N"])] = 0
        batch = self.may("batch", 20)
        first = ("B",) * batch
        self.matrix("a", (*first, "K", "M") if flipped[0] else (*first, "M", "K"), dtype)
        self.matrix("c", (*first, "K", "N") if flipped[1] else (*first, "N", "K"), dtype)
        self.grid_line(batch, [("m", "M"), ("n", "N")])
        at = "b, " * batch
        left = f"a[{at}k, m].T" if flipped[0] else f"a[{at}m, k]"
        right = f"c[{at}k, n]" if flipped[1] else f"c[{at}n, k].T"
        self.line("acc = kd.zeros([m, n])")
        bounds = f", {self.pick(['start', 'stop'])}={self.pick([16, 0, 20, 1000])}" if self.may("bounds", 20) else ""
        with self.around("k", "K", bounds):
            self.line(f"acc = kd.dot({left}, {right}, acc)")
        odd = any(t.odd for t in self.tensors)
        acc = Expr("acc", "f32", ("m", "n"), 4.0 * self.extents["K"], 0, odd=odd)
        x = self.elementwise(acc, self.upto(4))
        self.result((*first, "M", "N"), f"{at}m, n", x, "bf16" if dtype.startswith("f8") else dtype)

    def chain(self) -> None:
        """o = f(q @ k.T) @ v, whose middle is exact: small whole numbers, or a softmax, which is not."""
        self.extents |= {"M": self.pick(ROWS), "N": self.pick((*ROWS, *SIDES)), "D": self.pick(DEPTHS)}
        if self.empty:
            self.extents[self.pick(["N", "M"])] = 0
        dtype, batch, softmax = self.pick(["bf16", "f16", "bf16", "f32"]), self.may("batch", 30), self.smooth
        first, at = ("B",) * batch, "b, " * batch
        for name, dim in (("q", "M"), ("k", "N"), ("w", "N")):
            self.matrix(name, (*first, dim, "D"), dtype, most=1)
        self.odd = False
        for t in list(self.tensors):
            self.change(t, odd=t.odd and not softmax)
        self.grid_line(batch, [("m", "M")])
        self.line(f"query = q[{at}m, :]")
        self.line('acc, total = kd.zeros([m, "D"]), kd.zeros([m])')
        if softmax:
            self.line("top = kd.full([m], -kd.inf)")
        bounds, mask = self.masked(batch)
        if "m.st" in bounds:  # what a mask leaves out is multiplied by zero, and what bounds leave out is not
            self.change(next(t for t in self.tensors if t.name == "w"), odd=False)
        with self.around("n", "N", bounds):
            self.line(f"scores = kd.dot(query, k[{at}n, :].T)")
            if softmax:
                self.online(mask)
            else:
                self.line(f"p = {self.small(mask)}")
            self.line("total = total + kd.sum(p, axis=1)")
            to = "" if dtype == "f32" else f".to(kd.{dtype})"
            self.line(f"acc = kd.dot(p{to}, w[{at}n, :], {'acc * keep[:, None]' if softmax else 'acc'})")
        if softmax:
            x = Expr("(acc / kd.where(total == 0.0, 1.0, total)[:, None])", "f32", ("m", "D"), 1.0, 0,
                     2.0**-6 if dtype != "f32" else 2.0**-14)  # fmt: skip
        else:
            odd = any(t.odd for t in self.tensors)
            x = Expr("(acc + total[:, None])", "f32", ("m", "D"), 8.0 * 2 * self.extents["N"], -1, odd=odd)
            x = self.elementwise(x, self.upto(2))
        self.result((*first, "M", "D"), f"{at}m, :", x, dtype)

    def result(self, dims: tuple[str, ...], place: str, x: Expr, dtype: str) -> None:
        """The store, of the operands' type in most cases, as they are."""
        plain = self.upto(4) < 4 and x.most <= v.LARGEST[dtype]
        out = self.new_tensor(dims, dtype if plain else self.out_type(x), role="out", off=x.off)
        if plain:
            self.change(out, layout=Layout(tuple(range(len(dims)))))
        self.line(f"{out.name}[{place}] = {x.text}")

    def masked(self, batch: bool) -> tuple[str, str]:
        """Bounds of a chain's loop, and the mask that goes with them."""
        row, column, c = "m.index[:, None]", "n.index[None, :]", self.pick([0, 1, 16, 40])
        way = self.upto(5)
        if way == 1:
            return ", stop=m.stop", f"{column} <= {row}"
        if way == 2:
            return f", start=kd.maximum(m.start - {c}, 0), stop=m.stop + {c}", f"kd.abs({row} - {column}) <= {c}"
        if way == 3:
            return "", f"{column} <= {row} + {c}"
        if way == 4 and batch and self.may("loaded bound", 70):
            lengths = self.new_tensor(("B",), "i32", fill="length", most=self.extents["N"])
            return f", stop={lengths.name}[b]", ""
        if way == 5:
            return f", stop={self.int_argument(self.pick([0, 17, 1000])).text}", ""
        return "", ""

    def small(self, mask: str) -> str:
        x = self.clamped(Expr("scores", "f32", ("m", "n"), 128.0))
        steps = self.elementwise(x, self.upto(2)) if self.upto(1) else x
        clear = steps if steps.most <= 8 and steps.exact and steps.grain >= -1 else x
        return f"kd.where({mask}, {clear.text}, 0.0)" if mask else clear.text

    def online(self, mask: str) -> None:
        """Softmax as it goes (Milakov & Gimelshein 2018, arXiv:1805.02867), where rows may see nothing."""
        self.line("scores = scores * 0.125")
        if mask:
            self.line(f"scores = kd.where({mask}, scores, -kd.inf)")
        self.line("above = kd.maximum(top, kd.max(scores, axis=1))")
        self.line("shift = kd.where(above == -kd.inf, 0.0, above)")
        self.line("p = kd.exp(scores - shift[:, None])")
        self.line("keep = kd.exp(top - shift)")
        self.line("total = total * keep")
        self.line("top = above")
