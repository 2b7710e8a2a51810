"""Draws programs that must be refused: each is an ordinary one with one thing in it that no kernel, or no call, may have."""

from dataclasses import replace

from tests.programs import values as v
from tests.programs.products import Products
from tests.programs.values import Expr

EVERYWHERE = ("numpy", "triton", "pallas")
INTERPRETED = ("numpy", "triton")
"""Where an index that only shows when the kernel runs is told of; under jit it cannot be."""


class Illformed(Products):
    """``illformed`` draws one; it says what is wrong, and who must refuse it."""

    def open_grid(self, needs_tile: bool = False, groups: bool = False) -> None:
        raise NotImplementedError

    def some_statements(self) -> None:
        raise NotImplementedError

    def illformed(self) -> tuple[str, tuple[str, ...]]:
        wrongs = [
            self.bound_as_value, self.racing, self.literal_beyond, self.loaded_beyond, self.int_beyond, self.int_that_is_none,
            self.bad_output, self.required_none, self.descending,
        ]  # fmt: skip
        self.open_grid(needs_tile=True)
        if self.upto(1):
            self.some_statements()
        return self.pick(wrongs)()

    def stored(self, shape: tuple[str, ...], wrong: str) -> None:
        """A store of something ordinary plus a wrong scalar or tile, to a place of this program's own."""
        dims, names = tuple(x.dim for x in self.loops), ", ".join(x.name for x in self.loops)
        x = self.as_f32(self.value(shape, "float", 1, True))
        out = self.new_tensor(dims, "f32", role="out")
        self.line(f"{out.name}[{names}] = {x.text} + {wrong}")

    @property
    def own(self) -> tuple[str, ...]:
        return tuple(x.name for x in self.loops if x.tiled)

    def bound_as_value(self) -> tuple[str, tuple[str, ...]]:
        """A number that depends on how long tiles are."""
        tile = self.pick(self.tiles)
        part = f"{tile.name}.{self.pick(['start', 'stop', 'size'])}"
        way = self.upto(4)
        if way == 1:
            name = self.fresh("bound")
            self.line(f"{name} = {part} * 2")
            part = name
        elif way == 2:
            table = self.new_tensor((tile.dim,), "f32")
            part = f"{table.name}[{tile.name}.start]"
        elif way == 3:
            self.use_helper("doubled", "return a + b")
            part = f"doubled({part}, 1)"
        elif way == 4:
            part = f"kd.where({part} > 3, 1.0, 0.0)"
        self.stored(self.own, part)
        return "a tile's bound is used as a value", EVERYWHERE

    def racing(self) -> tuple[str, tuple[str, ...]]:
        """A store that programs of one parallel loop share."""
        left_out = self.pick(self.loops)
        kept = [x for x in self.loops if x is not left_out]
        dim = self.some_dim(but=[x.dim for x in self.loops])
        shape = (*(x.name for x in kept if x.tiled), dim)
        if not self.fits(shape):
            shape, kept = (dim,), []
        x = self.as_f32(self.value(shape, "float", 1, True))
        out = self.new_tensor((*(y.dim for y in kept), dim), "f32", role="out")
        self.line(f"{out.name}[{', '.join([*(y.name for y in kept), ':'])}] = {x.text}")
        return "programs store to one place", EVERYWHERE

    def beyond(self) -> str:
        """A dim that is indexed beyond its end below."""
        return self.new_dim(turns=True)

    def literal_beyond(self) -> tuple[str, tuple[str, ...]]:
        dim = self.beyond()
        table = self.new_tensor((dim,), "f32")
        self.stored(self.own, f"{table.name}[{self.extents[dim] + self.pick([0, 1, 1000])}]")
        return "a literal index is beyond its dim", EVERYWHERE

    def loaded_beyond(self) -> tuple[str, tuple[str, ...]]:
        dim, around = self.beyond(), self.indices
        table = self.new_tensor((dim,), "f32")
        if around:
            loop = self.pick(around)
            ids, at = self.new_tensor((loop.dim,), "i32", fill="index", most=self.extents[dim], odd=True), loop.name
        else:
            one = self.new_dim(turns=True)
            self.extents[one] = 1
            ids, at = self.new_tensor((one,), "i32", fill="index", most=self.extents[dim], odd=True), "0"
        self.stored(self.own, f"{table.name}[{ids.name}[{at}]]")
        return "a loaded index is out of range", INTERPRETED

    def int_beyond(self) -> tuple[str, tuple[str, ...]]:
        dim = self.beyond()
        table = self.new_tensor((dim,), "f32")
        index = self.int_argument(self.pick([self.extents[dim], -1, 10**6]))
        self.stored(self.own, f"{table.name}[{index.text}]")
        return "a kd.Int index is out of range", INTERPRETED

    def descending(self) -> tuple[str, tuple[str, ...]]:
        tile, ends = self.pick(self.tiles), self.new_dim(turns=True)
        self.extents[ends] = 3
        starts = self.new_tensor((ends,), "i32", fill="starts", most=self.extents[tile.dim], odd=True)
        at, over = next(i for i, line in enumerate(self.lines) if "kd.parallel(" in line), f'kd.tile("{tile.dim}"'
        self.lines[at] = self.lines[at].replace(f"{over})", f"{over}, starts={starts.name})")
        self.stored(self.own, "1.0")
        return "groups do not lie one behind the other", INTERPRETED

    def int_that_is_none(self) -> tuple[str, tuple[str, ...]]:
        """What is no int32 for a kd.Int."""
        name = self.int_argument(5).text
        self.stored(self.own, f"{name} * 1.0")
        self.scalars[name] = self.pick([1.5, "3", True, 2**31, -(2**31) - 1])
        return "a kd.Int is no int32", EVERYWHERE

    def bad_output(self) -> tuple[str, tuple[str, ...]]:
        """Memory in which elements of an output lie over each other."""
        self.stored(self.own, "1.0")
        out = self.tensors[-1]
        extents = [self.extents[d] for d in out.dims]
        if max(extents) < 2:
            self.extents[out.dims[0]] = extents[0] = 3
        several = sum(n > 1 for n in extents) > 1
        self.change(out, broken="overlap" if several and self.upto(1) else "stride")
        return "elements of an output share memory", INTERPRETED

    def required_none(self) -> tuple[str, tuple[str, ...]]:
        table = self.new_tensor((self.loops[0].dim,), "f32")
        text = Expr(f"{table.name}[{self.loops[0].name}]", "f32", self.own[:1] if self.loops[0].tiled else ())
        dims, names = tuple(x.dim for x in self.loops), ", ".join(x.name for x in self.loops)
        wide = v.lengthened(text, (True, False), self.own) if 0 < len(text.shape) < len(self.own) else text
        x = v.plus(replace(wide, most=1.0), self.as_f32(self.value(self.own, "float", 1, True)))
        out = self.new_tensor(dims, "f32", role="out")
        self.line(f"{out.name}[{names}] = {x.text}")
        self.change(table, absent=True)
        return "a tensor that is needed is None", EVERYWHERE
