"""Draws expressions of a given shape: loads, arithmetic, masks, reductions, casts, products, helpers.

A shape is a tuple of axes. Operators take one operand of the whole shape and one that broadcasts to it, or two that make it
together; a dim that stands in a shape twice comes only by the latter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.programs import values as v
from tests.programs.gathers import Gathers
from tests.programs.values import Expr

SIGNS = ("<", "<=", ">", ">=", "==", "!=")

Helper = tuple[str, str, Callable[[Expr, Expr], Expr]]

HELPERS: tuple[Helper, ...] = (
    ("blend", "both = a + b\n    return kd.maximum(both, a - b)",
     lambda a, b: v.larger(v.plus(a, b), v.plus(a, b, "-"), "maximum")),
    ("larger_of", "if b is None:\n        return a\n    return kd.maximum(a, b)", lambda a, b: v.larger(a, b, "maximum")),
    ("grown", "a = a + b\n    b = a + b\n    return b", lambda a, b: v.plus(v.plus(a, b), b)),
    ("square", "return a * a", lambda a, b: v.times(a, a)),
    ("kept", "return kd.where(a > b, a, 0.0)", lambda a, b: v.either(v.compared(a, b, ">"), a, v.number(0.0))),
)  # fmt: skip
"""Name, body in terms of a and b, and what it makes of them."""


class Expressions(Gathers):
    """``value`` is the door; ``fuel`` says how deep an expression may be."""

    def value(self, shape: Sequence[str], kind: str, fuel: int, exact: bool) -> Expr:
        """An expression of exactly this shape, whose values are sound."""
        shape = tuple(shape)
        dims = [self.dim_of(a) for a in shape]
        if len(set(dims)) < len(dims):
            found = self._paired(shape, kind, fuel, exact)
        elif fuel <= 0:
            found = self.leaf(shape, kind)
        else:
            found = getattr(self, f"_{kind}")(shape, fuel - 1, exact)
        if not found.sound or (exact and not found.exact):
            found = self.leaf(shape, kind) if len(set(dims)) == len(dims) else self.filled(shape, kind)
        return found

    # -------------------------------------------------------------- leaves
    def leaf(self, shape: tuple[str, ...], kind: str) -> Expr:
        known = [x.expr for x in self.variables if x.final and x.expr.shape == shape and x.expr.kind == kind
                 and x.expr.exact and x.expr.sound]  # fmt: skip
        if known and self.upto(2):
            return self.pick(known)
        if kind == "int" and len(shape) == 1 and self.is_tile(shape[0]) and self.upto(3):
            return Expr(f"{shape[0]}.index", "i32", shape, max(0, self.count(shape[0]) - 1))
        if kind == "int" and len(shape) == 1 and shape[0] in self.known_dims() and self.upto(3):
            return Expr(f'kd.index("{shape[0]}")', "i32", shape, max(0, self.count(shape[0]) - 1))
        if kind == "bool" and not self.may("bool tensor", 10):
            return self._compared(shape, 0)
        if not shape and self.upto(1):
            return self._scalar(kind)
        if shape and self.may("gather", 10) and (found := self.gathered(shape, kind)) is not None:
            return found
        return self.load(shape, kind) or self.filled(shape, kind)

    def _scalar(self, kind: str) -> Expr:
        if kind == "bool":
            return v.compared(self._scalar("int"), v.number(self.upto(3)), self.pick(SIGNS))
        if self.upto(4) == 4:  # which Python knows before anything runs
            found = v.number(self.upto(12, -3) if kind == "int" else self.pick([0.5, -1.5, 2.0]))
            dtype = ", kd.i32" if kind == "int" else ""
            return replace(found, text=f"kd.full([], {found.text}{dtype})", literal=False)
        if kind == "float":
            return self.float_argument()
        if self.indices and self.upto(1):
            loop = self.pick(self.indices)
            return Expr(loop.name, "i32", (), max(0, self.extents[loop.dim] - 1))
        if self.upto(1):
            return self.int_argument(self.upto(40, -3))
        dim = self.pick(self.known_dims()) if self.known_dims() else None
        return self.int_argument(5) if dim is None else Expr(f'kd.size("{dim}")', "i32", (), self.extents[dim])

    def known_dims(self) -> list[str]:
        """Dims that a tensor has."""
        return [d for d in self.extents if any(d in t.dims for t in self.tensors if not t.absent)]

    def filled(self, shape: tuple[str, ...], kind: str) -> Expr:
        """A tile of one number."""
        for axis in shape:
            if not self.is_tile(axis) and axis not in self.known_dims():
                self.new_tensor((axis,), "f32", odd=self.odd)
        if kind == "bool":
            whole = self.filled(shape, "float")
            return v.compared(whole, v.number(1.0), "<")
        inner = self._scalar(kind)
        if not shape:
            return inner
        dtype = ", kd.i32" if kind == "int" else ""
        return Expr(f"kd.full({self.sides(shape)}, {inner.text}{dtype})", "i32" if kind == "int" else "f32", shape, inner.most,
                    inner.grain)  # fmt: skip

    # -------------------------------------------------------------- operands
    def operand(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> Expr:
        """What broadcasts to a shape: a number, a scalar, fewer axes, or the whole of it."""
        way = self.upto(5)
        if way == 0 and kind != "bool":
            if kind == "int":
                return v.number(self.upto(20, -3))
            if self.may("global", 5):
                return self.constant()
            return v.number(self.pick([1.0, 2.0, 0.5, -1.0, 0.0]))
        if way == 1:
            return self.value((), kind, fuel, exact)
        if way <= 3 and len(shape) > 1:
            return self.partial(shape, kind, fuel, exact, self._mask(shape))
        return self.value(shape, kind, fuel, exact)

    def _mask(self, shape: tuple[str, ...]) -> tuple[bool, ...]:
        kept = self.upto(len(shape) - 1)
        return tuple(i == kept or self.upto(3) == 3 for i in range(len(shape)))

    def partial(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool, keep: tuple[bool, ...]) -> Expr:
        inner = self.value([a for a, k in zip(shape, keep, strict=True) if k], kind, fuel, exact)
        return v.lengthened(inner, keep, shape)

    def pair(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> tuple[Expr, Expr]:
        """Two operands that make a shape together, not both of them numbers."""
        dims = [self.dim_of(a) for a in shape]
        twice = next(((i, j) for j in range(len(dims)) for i in range(j) if dims[i] == dims[j]), None)
        if twice is not None or (len(shape) > 1 and self.upto(3) == 3):
            if twice is not None:
                self.tags["one dim twice"] = None
            i, j = twice or (0, len(shape) - 1)
            rest = [self.upto(1) for _ in shape]
            left = tuple(k != i and (k == j or rest[k] == 1 or self.upto(1) == 1) for k in range(len(shape)))
            right = tuple(k != j and (k == i or not left[k] or rest[k] == 0) for k in range(len(shape)))
            return self.partial(shape, kind, fuel, exact, left), self.partial(shape, kind, fuel, exact, right)
        a, b = self.value(shape, kind, fuel, exact), self.operand(shape, kind, fuel - 1, exact)
        return (b, a) if self.upto(3) == 3 else (a, b)

    def _paired(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> Expr:
        if kind == "bool":
            return self._compared(shape, fuel)
        if fuel > 0 and self.upto(1):
            zero = v.number(0.0 if kind == "float" else 0)
            return v.either(self._compared(shape, fuel - 1), self.operand_below(shape, kind, fuel - 1, exact), zero)
        a, b = self.pair(shape, kind, fuel - 1, exact)
        return self._combined(a, b, kind)

    def operand_below(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> Expr:
        """An operand with fewer axes than the shape."""
        if self.upto(2) == 0:
            return v.number(1.0 if kind == "float" else 1)
        keep = [False] * len(shape)
        keep[self.upto(len(shape) - 1)] = True
        return self.partial(shape, kind, fuel, exact, tuple(keep))

    def _combined(self, a: Expr, b: Expr, kind: str) -> Expr:
        way = self.pick(["+", "-", "maximum", "*", "minimum"])
        if way == "*" and (found := v.times(a, b)).sound:
            return found
        if way in ("+", "-") and (found := v.plus(a, b, way)).sound:
            return found
        return v.larger(a, b, "minimum" if way == "minimum" else "maximum")

    # -------------------------------------------------------------- kinds
    def _float(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        way = self.upto(17)
        if way <= 5:
            return self._combined(*self.pair(shape, "float", fuel, exact), "float")
        if way <= 7:
            return self._where(shape, "float", fuel, exact)
        if way == 8:
            return self._unary(shape, fuel, exact)
        if way in (9, 10) and self.smooth and not exact:
            if self.upto(3) == 3:
                return v.divided(*self.pair(shape, "float", fuel, exact))
            return v.smooth(self.pick(v.SMOOTH), self.value(shape, "float", fuel, exact))
        if way in (11, 12):
            return self.along(shape, "float", fuel, exact) or self.leaf(shape, "float")
        if way == 13:
            to = self.pick(["bf16", "f16", "f32", "f8e4m3", "f8e5m2"])
            x = self.clamped(self.value(shape, "float", fuel, exact))
            return (self.may("cast", 70) and v.narrowed(x, to)) or x
        if way == 14:
            x = self.value(shape, "int", fuel, exact)
            found = v.narrowed(x, "f32") if self.upto(1) else v.times(x, v.number(0.5))
            return found or self.leaf(shape, "float")
        if way == 15 and self.may("helper", 60):
            return self.helped(shape, fuel, exact)
        if way >= 16 and len(shape) == 2:
            return self._matrix(shape, fuel, exact)
        return self.leaf(shape, "float")

    def _int(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        way = self.upto(12)
        if way <= 3:
            return self._combined(*self.pair(shape, "int", fuel, True), "int")
        if way == 4:
            return self._where(shape, "int", fuel, True)
        if way == 5:
            a = self.value(shape, "int", fuel, True)
            return v.quotient(a, v.number(self.pick([2, 3, 1, 7, 16])), self.pick(["//", "%"]))
        if way == 6:
            return self.along(shape, "int", fuel, True) or self.leaf(shape, "int")
        if way == 7 and self.may("cast to int", 80):
            return self._to_int(shape, fuel)
        if way == 8:
            x = self.value(shape, "int", fuel, True)
            return v.negative(x) if self.upto(1) else v.magnitude(x)
        if way == 9:
            a, b = self.pair(shape, "int", fuel, True)
            return v.of_bits(a, b, self.pick(["&", "|", "^"]))
        if way == 10:
            return self._shifted(self.value(shape, "int", fuel, True), self.operand(shape, "int", fuel - 1, True))
        return self.leaf(shape, "int")

    def _shifted(self, x: Expr, count: Expr) -> Expr:
        """By counts that may leave no bit, to the right; to the left by such ones only, or by few."""
        if self.upto(1):
            return v.shifted(x, self.pick([count, v.number(self.pick([0, 1, 5, 31, 64, -1]))]), ">>")
        few = v.of_bits(count, v.number(3), "&")
        return v.shifted(x, few if self.upto(1) and not count.literal else v.number(self.pick([0, 1, 3, 64, -1])), "<<")

    def _to_int(self, shape: tuple[str, ...], fuel: int) -> Expr:
        x = self.value(shape, "float", fuel, True)
        if not x.exact or not x.sound:
            return self.leaf(shape, "int")
        if self.may("large to int", 15):
            x = v.times(x, v.number(2.0**33))
        found = v.whole(x if x.kind == "float" else v.times(x, v.number(1.0)))
        if found.sound:
            return found
        # What saturates is as large as can be; what is computed from it must be small again.
        return v.quotient(found, v.number(1000), "%") if self.upto(1) else v.either(
            v.compared(found, v.number(1000), ">"), v.number(1), v.number(0))  # fmt: skip

    def _bool(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        way = self.upto(4)
        if way == 3:
            a, b = self.pair(shape, "bool", fuel, True)
            return v.compared(a, b, self.pick(["&", "|", "^"]))
        if way == 4:
            x = self.value(shape, "bool", fuel, True)
            return Expr(f"(~{x.text})", "bool", x.shape)
        return self._compared(shape, fuel)

    def _compared(self, shape: tuple[str, ...], fuel: int) -> Expr:
        kind = self.pick(["int", "float"])
        a, b = self.pair(shape, kind, fuel - 1, True)
        if not (a.exact and b.exact):
            a, b = self.pair(shape, "int", 0, True)
        return v.compared(a, b, self.pick(SIGNS))

    def _where(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> Expr:
        if self.upto(1):
            condition, a = self.value(shape, "bool", fuel, True), self.operand(shape, kind, fuel - 1, exact)
        else:
            condition, a = self.operand(shape, "bool", fuel - 1, True), self.value(shape, kind, fuel, exact)
        b = self.operand(shape, kind, fuel - 1, exact) if self.upto(1) else v.number(0.0 if kind == "float" else 0)
        return v.either(condition, a, b)

    def _unary(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        x = self.value(shape, "float", fuel, exact)
        way = self.upto(3)
        if way == 0:
            return v.negative(x)
        if way == 1:
            return v.magnitude(x)
        if way == 2 and x.exact:
            return v.floored(x) if self.upto(1) else v.rounded(x)
        return v.halved(x, self.pick([2, 4]))

    def clamped(self, x: Expr) -> Expr:
        """Between -8 and 8."""
        x = v.as_float(x)
        text = f"kd.minimum(kd.maximum({x.text}, -8.0), 8.0)"
        return Expr(text, "f32", x.shape, min(x.most, 8.0), x.grain, x.off, x.odd)

    # -------------------------------------------------------------- reductions, products, helpers
    def along(self, shape: tuple[str, ...], kind: str, fuel: int, exact: bool) -> Expr | None:
        """A reduction along a whole dim, maybe one that the shape has already."""
        again = bool(shape) and self.may("one dim twice", 30)
        dim = self.dim_of(self.pick(shape)) if again else self.some_dim()
        at = self.upto(len(shape))
        inner = (*shape[:at], dim, *shape[at:])
        if dim in map(self.dim_of, shape) and "one dim twice" in self.without:
            return None
        if not self.fits(inner):
            return None
        if kind == "int" and self.count(dim) and self.may("places", 40):
            x = self.value(inner, self.pick(["float", "int"]), fuel, True)
            return v.place(x, self.pick(["argmax", "argmin"]), at, self.count(dim)) if dim in self.known_dims() else None
        plain = len(set(map(self.dim_of, inner))) == len(inner)
        x = self.gathered(inner, kind) if plain and self.may("gather", 15) else None
        x = x if x is not None else self.value(inner, kind, fuel, exact)
        if dim not in self.known_dims():
            return None
        return self.reduced(x, self.pick(["sum", "max", "min"]), at)

    def reduced(self, x: Expr, op: str, at: int) -> Expr:
        count = self.count(x.shape[at])
        written = at if self.upto(3) else at - len(x.shape)
        found = v.reduced(x, op, at, count, written)
        if not found.sound and op == "sum":
            found = v.reduced(self.clamped(x) if x.kind == "float" else x, "max", at, max(1, count), written)
        return found

    def _matrix(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        """A transpose, or a product over a whole dim."""
        if self.upto(1) or not self.may("product", 70):
            x = self.value(shape[::-1], "float", fuel, exact)
            return Expr(f"{x.text}.T", x.dtype, shape, x.most, x.grain, x.off, x.odd)
        dim = self.some_dim(but=[self.dim_of(a) for a in shape])
        if not self.fits((*shape, dim)):
            return self.leaf(shape, "float")
        dtype = self.float_type()
        a, b = (self.factor(s, dtype, fuel - 1) for s in ((shape[0], dim), (dim, shape[1])))
        found = v.product(a, b, None, self.extents[dim])
        return found if found is not None and found.sound else self.leaf(shape, "float")

    def factor(self, shape: tuple[str, ...], dtype: str, fuel: int) -> Expr:
        """One side of a product: loaded as it is or transposed, or computed."""
        way = self.upto(4)
        if way <= 2:
            straight = way < 2
            whole = shape if straight else shape[::-1]
            found = self.gathered(whole, "float", dtype) if self.may("gather", 20) else None
            found = found if found is not None and found.dtype == dtype else self.load(whole, "float", dtype)
            if found is not None:
                return found if straight else v.replace(found, text=f"{found.text}.T", shape=shape)
        x = self.clamped(self.value(shape, "float", fuel, True))
        found = x if dtype == "f32" or not x.exact else v.narrowed(x, dtype)
        return x if found is None or not found.exact else found

    def helped(self, shape: tuple[str, ...], fuel: int, exact: bool) -> Expr:
        """A call of a @kd.function."""
        name, body, effect = self.pick(HELPERS)
        a, b = self.value(shape, "float", fuel, True), self.operand(shape, "float", fuel - 1, True)
        made = effect(a, b)
        if not made.sound:
            return a
        self.use_helper(name, body)
        if self.may("static function", 15):
            argument = self.fresh("apply")
            self.statics[argument] = name
            self.functions.append(argument)
            name = argument
        return v.replace(made, text=f"{name}({a.text}, {b.text})")

    def use_helper(self, name: str, body: str) -> None:
        text = f"@kd.function\ndef {name}(a, b):\n    {body}\n"
        if text not in self.helpers:
            self.helpers.append(text)
