"""What a program that is being drawn has so far: dims, tensors, scalar arguments, loops, variables, lines of text."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hypothesis.internal.conjecture.data import ConjectureData

from tests.generated.arrays import Layout
from tests.programs.program import Tensor
from tests.programs.values import Expr

T = TypeVar("T")

EXTENTS = (3, 7, 16, 17, 2, 33, 1, 37, 64, 100)
"""Of dims that are cut into tiles or taken whole, the plainest first: hypothesis shrinks towards it."""
TURNS = (2, 3, 1, 7)
"""Extents of dims that are gone through index by index."""
TIDY = (16, 32, 64)
"""Extents that tiles divide."""
NAMES = ("M", "N", "K", "D", "B", "Q", "P", "V", "R", "S", "T", "U", "W", "X", "Y", "Z", "E", "F")

MOST_LANES = 8192
"""Elements of one tile, sides rounded up to powers of two."""
MOST_TENSORS = 6
TILE_LANES = 16
"""What a tile is taken for where its lanes are counted: configs with longer ones are drawn where there is room."""


@dataclass(frozen=True)
class Loop:
    """A loop around what is being drawn: ``tiled``, or over each index. ``mask``: the tile that its bounds hang on, with the
    condition, in terms of the indices {n} and {m}, that makes what lies beyond neutral."""

    name: str
    dim: str
    tiled: bool
    mask: tuple[str, str] | None = None
    bounded: bool = False


@dataclass
class Variable:
    """A variable that may be read: from when it is final."""

    expr: Expr
    level: int
    final: bool = True


class Scope:
    """State, and the small draws that all parts share. ``without``: tags of what is not to be drawn.

    Numbers are taken from hypothesis' own source of choices, not through a strategy each: hypothesis would see equal strategies
    as places to copy choices between, and half of all programs would nearly be copies.
    """

    def __init__(self, source: ConjectureData, without: frozenset[str]) -> None:
        self.source, self.without = source, without
        self.extents: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        self.scalars: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.statics: dict[str, Any] = {}
        self.functions: list[str] = []
        self.constants: dict[str, Any] = {}
        self.changed: dict[str, Any] = {}
        self.before: list[dict[str, Any]] = []
        self.helpers: list[str] = []
        self.lines: list[str] = []
        self.loops: list[Loop] = []
        self.seen: list[tuple[str, bool, int]] = []
        self.variables: list[Variable] = []
        self.grid = 0
        self.tags: dict[str, None] = {}
        self.odd = self.may("odd numbers", 12)
        self.empty = not self.odd and self.may("empty", 8)
        self.tidy = self.may("tidy", 15)
        self.smooth = not self.odd and self.may("smooth", 35)

    # -------------------------------------------------------------- draws
    def may(self, tag: str, percent: int) -> bool:
        """Whether something of this name is drawn; hypothesis shrinks towards no."""
        if tag in self.without:
            return False
        found = self.upto(99) >= 100 - percent
        if found:
            self.tags[tag] = None
        return found

    def pick(self, options: Sequence[T]) -> T:
        return options[self.upto(len(options) - 1)] if len(options) > 1 else options[0]

    def upto(self, most: int, least: int = 0) -> int:
        return self.source.draw_integer(least, most)

    # -------------------------------------------------------------- dims and axes
    def new_dim(self, turns: bool = False) -> str:
        name = next(n for n in NAMES if n not in self.extents)
        if self.empty and self.may("empty dim", 30):
            self.extents[name] = 0
        else:
            self.extents[name] = self.pick(TURNS if turns else TIDY if self.tidy else EXTENTS)
        return name

    def some_dim(self, turns: bool = False, but: Sequence[str] = ()) -> str:
        """A dim, often one that is there; to go through index by index it must be short."""
        known = [d for d in self.extents if d not in but and (not turns or self.extents[d] <= 7)]
        if len(self.extents) >= len(NAMES) or (known and self.upto(2) < 2):
            return self.pick(known)
        return self.new_dim(turns)

    def dim_of(self, axis: str) -> str:
        """Of a tile variable or a whole dim."""
        return next((loop.dim for loop in self.loops if loop.name == axis), axis)

    def is_tile(self, axis: str) -> bool:
        return axis not in self.extents

    def lanes(self, shape: Sequence[str]) -> int:
        count = 1
        for axis in shape:
            padded = 1 << max(0, self.extents[self.dim_of(axis)] - 1).bit_length()
            count *= min(padded, TILE_LANES) if self.is_tile(axis) else padded
        return count

    def fits(self, shape: Sequence[str]) -> bool:
        return len(shape) <= 3 and self.lanes(shape) <= MOST_LANES

    @property
    def tiles(self) -> list[Loop]:
        return [loop for loop in self.loops if loop.tiled]

    @property
    def indices(self) -> list[Loop]:
        return [loop for loop in self.loops if not loop.tiled]

    def count(self, axis: str) -> int:
        return self.extents[self.dim_of(axis)]

    def sides(self, shape: Sequence[str]) -> str:
        """A shape as kd.zeros takes it."""
        return f"[{', '.join(a if self.is_tile(a) else repr(a) for a in shape)}]".replace("'", '"')

    # -------------------------------------------------------------- text
    def line(self, text: str) -> None:
        self.lines.append("    " * (1 + len(self.loops) + self.branches) + text)

    branches = 0

    @contextmanager
    def branch(self, header: str) -> Iterator[None]:
        """Lines under an ``if``."""
        self.line(header)
        self.branches += 1
        yield
        self.branches -= 1

    def fresh(self, stem: str) -> str:
        """A name that nothing has."""
        taken = {t.name for t in self.tensors} | set(self.scalars) | set(self.statics) | set(self.constants)
        text = "\n".join(self.lines)
        count = 1
        while f"{stem}{count}" in taken or re.search(rf"\b{stem}{count}\b", text):
            count += 1
        return f"{stem}{count}"

    # -------------------------------------------------------------- arguments
    def float_argument(self) -> Expr:
        known = [n for n, v in self.scalars.items() if isinstance(v, float)]
        if known and self.upto(1):
            name = self.pick(known)
        else:
            name = self.fresh("scale")
            self.scalars[name] = self.pick([1.0, 0.5, 2.0, -1.5, 0.0, 3.0])
            self.kinds[name] = "Float"
        return Expr(name, "f32", most=abs(self.scalars[name]), grain=-1)

    def int_argument(self, value: int) -> Expr:
        known = [n for n, v in self.scalars.items() if v == value and self.kinds[n] == "Int"]
        name = self.pick(known) if known else self.fresh("count")
        self.scalars[name], self.kinds[name] = value, "Int"
        return Expr(name, "i32", most=abs(value))

    def constant(self) -> Expr:
        """A module's constant, which may change after a first run."""
        name = self.fresh("FACTOR")
        self.constants[name] = self.pick([2.0, 3.0, -1.0])
        if self.may("globals", 50):
            self.changed[name] = self.constants[name] + 1.0
        return Expr(name, "f32", most=4.0, literal=True)

    # -------------------------------------------------------------- tensors
    def new_tensor(self, dims: tuple[str, ...], dtype: str, **more: Any) -> Tensor:
        name = self.fresh("y" if more.get("role") == "out" else "x")
        tensor = Tensor(name, dims, dtype, layout=self.layout(len(dims)), **more)
        self.tensors.append(tensor)
        return tensor

    def layout(self, rank: int) -> Layout:
        order = tuple(range(rank))
        if self.upto(2) == 2:
            order = order[::-1] if rank < 3 or self.upto(1) else (*order[:-2], order[-1], order[-2])
        return Layout(order, self.pick([0, 0, 0, 1, 3]))

    def change(self, tensor: Tensor, **new: Any) -> Tensor:
        found = replace(tensor, **new)
        self.tensors[self.tensors.index(tensor)] = found
        return found

    def index_of(self, dim: str) -> str | None:
        """A scalar that is an index of a dim; None where there is none."""
        around = [loop.name for loop in self.indices if loop.dim == dim]
        if around and self.upto(3) < 3:
            return self.pick(around)
        extent = self.extents[dim]
        if not extent:
            return around[0] if around else None
        way = self.upto(5)
        if way == 1:
            return f'kd.size("{dim}") - 1'
        if way == 2 and self.may("int index", 60):
            return self.int_argument(self.pick([0, extent - 1])).text
        if way >= 3 and self.may("loaded index", 60):
            return self.looked_up(dim)
        groups = [loop for loop in self.indices if loop.dim != dim and extent and not self.extents[loop.dim] % extent]
        if way == 4 and groups and self.extents[groups[0].dim]:
            return f'{groups[0].name} // kd.group("{groups[0].dim}", "{dim}")'
        return str(self.pick([0, extent - 1]))

    def looked_up(self, dim: str) -> str | None:
        """An index of a dim that is loaded."""
        loops = [loop for loop in self.indices if self.extents[loop.dim]]
        known = [t for t in self.tensors if t.fill == "index" and t.most == self.extents[dim] and not t.odd
                 and t.dtype == "i32" and len(t.dims) == 1 and any(loop.dim == t.dims[0] for loop in loops)]  # fmt: skip
        if known:
            tensor = known[0]
        elif loops and len(self.tensors) < MOST_TENSORS:
            tensor = self.new_tensor((self.pick(loops).dim,), "i32", fill="index", most=self.extents[dim])
        else:
            return None
        loop = next(loop for loop in loops if loop.dim == tensor.dims[0])
        return f"{tensor.name}[{loop.name}]"

    def load(self, shape: Sequence[str], kind: str, dtype: str | None = None) -> Expr | None:
        """A tile of a tensor that has these axes in this order; None where none has, and none may be added."""
        wanted = [self.dim_of(a) for a in shape]
        if len(set(wanted)) != len(wanted):
            return None
        fitting = [t for t in self.tensors if self._holds(t, wanted, kind, dtype)]
        if fitting and (len(self.tensors) >= MOST_TENSORS or self.upto(2) < 2):
            tensor = self.pick(fitting)
        elif len(self.tensors) < MOST_TENSORS:
            tensor = self._added(wanted, kind, dtype)
        else:
            return None
        axes, entries = list(shape), []
        for dim in tensor.dims:
            if axes and dim == self.dim_of(axes[0]):
                axis = axes.pop(0)
                entries.append(axis if self.is_tile(axis) else ":")
            elif (entry := self.index_of(dim)) is not None:
                entries.append(entry)
            else:
                return None
        grain = 0 if kind != "float" else tensor.grain
        most = tensor.most * 2.0**grain if kind != "bool" else 0.0
        return Expr(f"{tensor.name}[{', '.join(entries)}]", tensor.dtype, tuple(shape), most, grain, odd=tensor.odd)

    def _holds(self, t: Tensor, wanted: Sequence[str], kind: str, dtype: str | None) -> bool:
        if t.role == "out" or t.fill != "steps" or t.absent or (dtype is not None and t.dtype != dtype):
            return False
        if Expr("", t.dtype).kind != kind:
            return False
        left = list(wanted)
        for dim in t.dims:
            if left and dim == left[0]:
                left.pop(0)
            elif not self.extents[dim] and not any(loop.dim == dim for loop in self.indices):
                return False
        return not left

    def _added(self, wanted: Sequence[str], kind: str, dtype: str | None) -> Tensor:
        dims = list(wanted)
        around = [loop.dim for loop in self.indices if loop.dim not in dims]
        while len(dims) < 4 and (not dims or self.upto(2) == 2):
            more = self.pick(around) if around and self.upto(3) else self.some_dim(turns=True, but=dims)
            if more in dims or not (self.extents[more] or more in around):
                if dims:
                    break
                continue
            dims.insert(self.upto(len(dims)), more)
        if dtype is None:
            dtype = {"float": self.float_type, "int": self.int_type, "bool": lambda: "bool"}[kind]()
        grain = self.pick([0, -1, -2]) if kind == "float" else 0
        most = 8 if kind == "float" else self.pick([8, 3, 40])
        tensor = self.new_tensor(tuple(dims), dtype, grain=grain, most=most, odd=self.odd and kind == "float")
        if kind == "float" and dtype == "f32" and self.may("negated", 4):
            tensor = self.change(tensor, negated=True)
        return tensor

    def float_type(self) -> str:
        if self.may("narrow", 40):
            return self.pick(["f16", "bf16", "f16", "bf16", "f8e4m3", "f8e5m2"])
        return "f32"

    def int_type(self) -> str:
        if self.may("bytes", 12):
            return self.pick(["i8", "u8"])
        return "i64" if self.may("i64", 6) else "i32"
