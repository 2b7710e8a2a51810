"""Draws whole programs: a grid, what one program of it does, stores; or one that must be refused."""

from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.strategies import SearchStrategy

from tests.programs import values as v
from tests.programs.illformed import Illformed
from tests.programs.program import Call, Program
from tests.programs.scope import Loop

TAGS = (
    "batch", "bool tensor", "bounds", "bytes", "cast", "cast to int", "choice", "empty", "gather", "globals", "global",
    "groups", "helper", "i64", "ill-formed", "index loop", "int index", "large to int", "loaded bound", "loaded index",
    "loop in a loop", "narrow", "negated", "odd numbers", "one dim twice", "optional", "absent", "packed", "places",
    "product", "products", "range", "share", "shared memory", "smooth", "static", "static function", "store in a loop",
    "stored as integers", "addition", "tidy", "tile bounds", "huge window",
)  # fmt: skip
"""What can be left out with ``--without``."""


class Kernels(Illformed):
    """``program`` draws one."""

    def program(self) -> Program:
        if self.may("ill-formed", 12):
            self.empty = self.odd = False
            refused, refusing = self.illformed()
        else:
            refused, refusing = "", ("numpy", "triton", "pallas")
            if self.may("products", 22):
                (self.lone if self.upto(2) < 2 else self.chain)()
            elif self.may("shared memory", 5):
                self.elementwise_in_place()
            else:
                self.plain()
        return self.finished(refused, refusing)

    # -------------------------------------------------------------- ordinary kernels
    def open_grid(self, needs_tile: bool = False, groups: bool = False) -> None:
        """The parallel loops. ``groups``: they may leave out what lies in no group."""
        count = self.pick([1, 2, 2, 3])
        loops: list[Loop] = []
        for i in range(count):
            tiled = (needs_tile and i == 0) or (sum(x.tiled for x in loops) < 2 and self.upto(2) < 2)
            dim = self.new_dim(turns=not tiled)
            if not tiled and loops:
                self.extents[dim] = min(self.extents[dim], 3)
            loops.append(Loop(dim.lower(), dim, tiled))
        over = [f'kd.tile("{x.dim}")' if x.tiled else f'"{x.dim}"' for x in loops]
        grouped = next((x for x in loops if x.tiled), None) if groups and self.may("groups", 12) else None
        if grouped is not None:
            starts = self.new_tensor((self.new_dim(),), "i32", fill="starts", most=self.extents[grouped.dim])
            over[loops.index(grouped)] = f'kd.tile("{grouped.dim}", starts={starts.name})'
        self.line(f"for {', '.join(x.name for x in loops)} in kd.parallel({', '.join(over)}):")
        self.loops, self.grid = loops, count
        self.branches = 1 - count
        self.seen = [(x.dim, x.tiled, 0) for x in loops]
        if grouped is not None:
            self.assign(v.Expr(f"{grouped.name}.group", "i32", most=float(self.extents[starts.dims[0]])), "group")

    def plain(self) -> None:
        self.open_grid(groups=True)
        self.some_statements()
        if self.may("addition", 8):
            self.addition()
        if self.may("share", 12):
            self.dealt()
        for _ in range(self.pick([1, 1, 2])):
            self.store()
        self.sure_store()

    def some_statements(self) -> None:
        for _ in range(self.pick([1, 2, 0, 3])):
            self.assignment()
        for _ in range(self.pick([0, 1, 1, 2])):
            if self.upto(3) == 3:
                self.two_ways()
            else:
                self.loop(1)
        if self.may("range", 10):
            self.in_range()
        if self.may("huge window", 4):
            self.huge_window()

    def sure_store(self) -> None:
        """Every kernel stores something."""
        while not any(t.role == "out" for t in self.tensors):
            shape = tuple(x.name for x in self.loops if x.tiled)
            self.put(tuple(x.dim for x in self.loops), ", ".join(x.name for x in self.loops), shape, "float")

    def huge_window(self) -> None:
        """A window that leaves everything in: int32 does not hold the sum of an index and it."""
        if not self.tiles:
            return
        tile = self.pick(self.tiles).name
        window = self.int_argument(2**31 - self.pick([1, 3, 1000]))
        condition = v.compared(v.Expr(f"({tile}.index + {window.text})", "i32", (tile,)), v.number(0), ">")
        self.assign(v.either(condition, self.as_f32(self.value((tile,), "float", 1, True)), v.number(0.0)))

    def elementwise_in_place(self) -> None:
        """An output that is an input: every program reads what it writes before it writes."""
        self.odd = self.empty = False
        self.open_grid()
        dims = [x.dim for x in self.loops]
        swapped = self.new_dim()
        self.extents[swapped] = 2
        shape = tuple(x.name for x in self.loops if x.tiled)
        x = self.new_tensor((*dims, swapped), "f32")
        places = [", ".join([*(y.name for y in self.loops), str(i)]) for i in (0, 1)]
        first, second = (v.Expr(f"{x.name}[{p}]", "f32", shape, 8.0) for p in places)
        if self.upto(1):
            first, second = (self.assign(y).expr for y in (first, second))
            values = [second, first]
        else:
            values = [v.plus(first, v.number(1.0)), v.times(second, v.number(2.0))]
            if self.upto(1):
                values = [self.assign(y).expr for y in values]
        y = self.new_tensor(x.dims, "f32", role="out", over=x.name)
        for place, value in zip(places, values, strict=True):
            self.line(f"{y.name}[{place}] = {value.text}")

    # -------------------------------------------------------------- the text
    def finished(self, refused: str, refusing: tuple[str, ...]) -> Program:
        text = "\n".join(self.lines)
        used = {d for d in self.extents if f'"{d}"' in text}
        for dim in sorted(used - set(self.known_dims())):
            self.new_tensor((dim,), "f32")
        held = {d for t in self.tensors for d in t.dims}
        kinds = {t.name: "In" if t.role == "in" else "Out" for t in self.tensors} | self.kinds
        kinds |= dict.fromkeys(self.statics, "Static")
        parameters = ", ".join(f"{name}: kd.{kind}" for name, kind in kinds.items())
        dims = ", ".join(f'{t.name}="{" ".join(t.dims)}"' for t in self.tensors)
        head = ["import kpt_dsl as kd\n", *(f"{n} = {x!r}" for n, x in self.constants.items()), "", *self.helpers]
        text = "\n".join([*head, f"@kd.kernel({dims})", f"def drawn({parameters}) -> None:", text, ""])
        call = Call(
            tuple(self.tensors), {d: n for d, n in self.extents.items() if d in held}, self.scalars, self.statics,
            tuple(self.functions), tuple({**self.statics, **other} for other in self.before), self.changed, tuple(self.seen),
            refused, refusing, self.upto(999), tuple(self.tags),
        )  # fmt: skip
        return Program(text, call)


class Programs(SearchStrategy[Program]):
    """The strategy: programs without what some tags name."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        """Raises ValueError for a tag that there is not."""
        super().__init__()
        if unknown := without - set(TAGS):
            raise ValueError(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(TAGS)}")
        self.without = without

    def do_draw(self, data: ConjectureData) -> Program:
        return Kernels(data, self.without).program()
