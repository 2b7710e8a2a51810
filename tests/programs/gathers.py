"""Draws gathers: tensors whose dims are indexed by tiles of integers, beside tiles and whole dims.

An index tile brings axes of its own into the result, or goes along with axes that stand before it. What it holds is loaded, or
computed so that it is of its dim; or, in a branch of kd.where that says so, of none.
"""

from collections.abc import Sequence

from tests.programs import values as v
from tests.programs.scope import MOST_TENSORS, Scope
from tests.programs.values import Expr


class Gathers(Scope):
    """``gathered`` draws one."""

    def value(self, shape: Sequence[str], kind: str, fuel: int, exact: bool) -> Expr:
        raise AssertionError("expressions know how to draw one")

    def gathered(self, shape: tuple[str, ...], kind: str, dtype: str | None = None) -> Expr | None:
        """A tile of a new tensor, by at least one tile of indices; None where there is no room."""
        guarded = self.upto(4) == 4
        entries, dims, at, tiles, conditions = list[str](), list[str](), 0, 0, list[Expr]()
        while at < len(shape) or not tiles:
            if len(dims) == 3:
                return None
            dim = self.dim_of(shape[at]) if at < len(shape) else ""
            if dim and dim not in dims and self.upto(2) > (0 if tiles else 1):
                entries.append(shape[at] if self.is_tile(shape[at]) else ":")
                dims.append(dim)
                at += 1
                continue
            own = [a for a in shape[:at] if self.upto(2) == 2]
            more = self.upto(min(2, len(shape) - at), 0 if own or at == len(shape) else 1)
            own += shape[at : at + more]
            dim = self.some_dim(but=dims)
            if not own or dim in dims or not self.extents[dim] or len(self.tensors) >= MOST_TENSORS - 1:
                return None
            index, condition = self.index_tile(tuple(own), dim, guarded)
            entries.append(index)
            dims.append(dim)
            if condition is not None:
                conditions.append(v.lengthened(condition, tuple(a in own for a in shape), shape))
            at, tiles = at + more, tiles + 1
        grain = self.pick([0, -1]) if kind == "float" else 0
        if dtype is None:
            dtype = self.float_type() if kind == "float" else self.int_type() if kind == "int" else "bool"
        tensor = self.new_tensor(tuple(dims), dtype, grain=grain, odd=self.odd and kind == "float")
        most = tensor.most * 2.0**grain if kind != "bool" else 0.0
        found = Expr(f"{tensor.name}[{', '.join(entries)}]", dtype, shape, most, grain, odd=tensor.odd)
        for condition in conditions if kind != "bool" else ():
            found = v.either(condition, found, v.number(0.0 if kind == "float" else 0))
        return found

    def index_tile(self, shape: tuple[str, ...], dim: str, guarded: bool) -> tuple[str, Expr | None]:
        """The text of indices of a dim, and a condition where some of them are none."""
        extent = self.extents[dim]
        if len({self.dim_of(a) for a in shape}) == len(shape) and self.upto(2) < 2:
            dtype = self.pick(["i32", "i64", "i32", *(["u8"] if extent < 200 and not guarded else [])])
            more = {"fill": "index", "most": extent, "odd": guarded}
            known = [t for t in self.tensors if (t.dtype, t.fill, t.most, t.odd) == (dtype, "index", extent, guarded)
                     and t.dims == tuple(map(self.dim_of, shape))]  # fmt: skip
            tensor = known[0] if known else self.new_tensor(tuple(map(self.dim_of, shape)), dtype, **more)
            text = f"{tensor.name}[{', '.join(a if self.is_tile(a) else ':' for a in shape)}]"
            if not guarded:
                return text, None
            inside = v.compared(Expr(text, dtype, shape), v.number(0), ">=")
            return text, v.compared(inside, v.compared(Expr(text, dtype, shape), v.number(extent), "<"), "&")
        x = self.value(shape, "int", 1, True)
        way = self.upto(2)
        if x.literal or x.shape != shape:
            return f"kd.full({self.sides(shape)}, {extent - 1}, kd.i32)", None
        if way == 0:
            return v.quotient(x, v.number(extent), "%").text, None
        if way == 1 and x.text.endswith(".index"):
            fit = -(-(int(x.most) + 1) // extent)
            return v.quotient(x, v.number(fit), "//").text, None
        return f"kd.minimum(kd.maximum({x.text}, 0), {extent - 1})", None
