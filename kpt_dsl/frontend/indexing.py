"""The front end's indices: subscripts of tensors as IR, tiles of whole numbers among them, and the conditions around them."""

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from types import ModuleType
from typing import Any

from kpt_dsl import ir
from kpt_dsl.dtypes import i32
from kpt_dsl.errors import InputError
from kpt_dsl.frontend import typing as ty
from kpt_dsl.frontend.names import Local, Names
from kpt_dsl.frontend.outside import Helper, Values
from kpt_dsl.frontend.source import Source, fail
from kpt_dsl.ir import Expr, Loc


@dataclass(frozen=True)
class TileRef:
    """``kd.tile(dim)`` in a loop header (no tile yet), or the loop's tile variable."""

    dim: str
    tile: ir.Tile | None = None
    starts: ir.Tensor | None = None


def is_made_of_tiles(value: Any) -> bool:
    """Whether a value is known to nobody before the kernel runs, or some part of it."""
    kinds = Expr | ir.Tensor | TileRef
    return any(map(is_made_of_tiles, value)) if isinstance(value, tuple | list) else isinstance(value, kinds)


def describe(value: Any) -> str:
    """What a person would call a value in an error message."""
    match value:
        case Expr():
            return f"a value of type {value.type}"
        case ir.Tensor():
            return f"the tensor {value.name}[{', '.join(value.dims)}]"
        case TileRef(dim=dim, tile=tile):
            return f"a tile of {dim}" if tile is None else f"the tile {tile.name} of {dim}"
        case Helper():
            return f"the function {value.name}"
        case ModuleType():
            return f"the module {value.__name__}"
        case tuple() | list() if is_made_of_tiles(value):
            return f"({', '.join(map(describe, value))})"
    if callable(value):
        return f"the Python {'class' if isinstance(value, type) else 'function'} {getattr(value, '__name__', value)}"
    return f"{value!r} ({type(value).__name__})"


class Indices(Names):
    """Reads subscripts. ``dims``: those of the kernel."""

    def __init__(self, source: Source, local: Local, dims: frozenset[str], outside: Values) -> None:
        super().__init__(source, local, outside)
        self.dims = dims
        self.asked: tuple[Expr, ...] = ()
        """The conditions under which what is being read is asked for: the branches of kd.where around it are taken."""
        self.without_extents: Mapping[str, tuple[str, ...]] = {}

    def expr(self, node: ast.expr) -> Any:
        raise AssertionError("expressions know how to evaluate")

    def slices(self, node: ast.expr) -> list[Any]:
        """The entries of a subscript, ``:`` as slice(None)."""
        entries = node.elts if isinstance(node, ast.Tuple) else [node]
        found: list[Any] = []
        for entry in entries:
            if isinstance(entry, ast.Slice):
                if entry.lower or entry.upper or entry.step:
                    fail(self.source.loc(entry), "a slice with bounds",
                         "index with a tile: for n in kd.sequential(kd.tile(dim))")  # fmt: skip
                found.append(slice(None))
            else:
                found.append(self.expr(entry))
        return found

    def index(self, tensor: ir.Tensor, node: ast.expr) -> tuple[tuple[ir.Axis | Expr, ...], tuple[ir.Axis, ...]]:
        """A tensor's subscript as IR, and the shape of the tile that it names."""
        loc = self.source.loc(node)
        entries = self.slices(node)
        dims = ", ".join(tensor.dims)
        if len(entries) != len(tensor.dims):
            fail(loc, f"{len(entries)} indices for {tensor.name}[{dims}]",
                 f"give one a dim: a tile, a whole-number scalar, or ':' ({len(tensor.dims)} of them)")  # fmt: skip
        places = [self.source.loc(e) for e in (node.elts if isinstance(node, ast.Tuple) else [node])]
        index: list[ir.Axis | Expr] = []
        for entry, dim, place in zip(entries, tensor.dims, places, strict=True):
            match entry:
                case slice():
                    index.append(ir.Axis(dim))
                case TileRef(dim=over, tile=ir.Tile() as tile):
                    if over != dim:
                        fail(loc, f"tile {tile.name} runs over {over}, but this index of {tensor.name}[{dims}] is {dim}",
                             f"index it with a tile of {dim}, or name the dim {over} in the kernel's decorator")  # fmt: skip
                    index.append(tile.axis)
                case ir.Index():
                    index.append(entry)
                case Expr() if entry.type == ir.Type(i32):
                    index.append(ir.Checked(entry, tensor.name, dim, type=entry.type, loc=place))
                case Expr() if entry.type.shape and entry.type.dtype.kind == "int":
                    places_of = ty.widened(entry, place)
                    index.append(ir.Checked(places_of, tensor.name, dim, type=places_of.type, loc=place))
                case int() if not isinstance(entry, bool) and entry >= 0:
                    index.append(ir.scalar(entry, place))
                case _:
                    fail(loc, f"{tensor.name}[{dims}] indexed with {describe(entry)}",
                         "an index is a tile, a whole-number scalar from 0 up, a tile of whole numbers, or ':'")  # fmt: skip
        plain = [i for i in index if isinstance(i, ir.Axis)]
        if len(set(plain)) != len(plain):
            fail(loc, f"{tensor.name} indexed twice with one tile",
                 f"use a second loop over the same dim; {tensor.name}[m, m.index] is the diagonal")  # fmt: skip
        shape = ir.kept(tuple(index))
        for entry in index:
            if isinstance(entry, ir.Checked) and entry.type.shape:
                self.check_order(entry, shape)
        return tuple(index), shape

    @staticmethod
    def check_order(entry: ir.Checked, shape: tuple[ir.Axis, ...]) -> None:
        """Refuses a tile as an index whose axes are not some of the result's, in its order."""
        axes = entry.type.shape
        what = f"{entry.tensor} indexed along {entry.dim} with a value of type {entry.type}"
        if ir.UNIT in axes or len(set(axes)) < len(axes):
            fail(entry.loc, f"{what}: an axis of length one, or one twice, says nothing of the result",
                 "axes of indices are told apart by name: index with the tile as it was loaded, without [:, None]")  # fmt: skip
        if list(axes) != [axis for axis in shape if axis in axes]:
            fail(entry.loc, f"{what}, but the result's axes are met in the order [{', '.join(map(str, shape))}]",
                 "write .T behind it")  # fmt: skip

    def taken(self, shape: tuple[ir.Axis, ...], loc: Loc) -> Expr | None:
        """Where an element of a tile of this shape is asked for, as far as the conditions around it say so of each element."""
        fitting = [c for c in self.asked if not c.type.shape or ty.spreads(c.type.shape, shape)]
        return reduce(lambda a, b: ty.binary("and", a, b, loc), fitting) if fitting else None

    @contextmanager
    def asking(self, conditions: tuple[Expr, ...]) -> Iterator[None]:
        """What is read meanwhile is asked for under these conditions."""
        outer, self.asked = self.asked, conditions
        try:
            yield
        finally:
            self.asked = outer

    @property
    def asked_of_all(self) -> tuple[Expr, ...]:
        """The conditions, of those around, that are no tile's: they hold for what is made of several elements too."""
        return tuple(c for c in self.asked if not c.type.shape)

    def check_dim(self, dim: Any, loc: Loc) -> str:
        if not isinstance(dim, str) or dim not in self.dims:
            if without := [name for name, dims in self.without_extents.items() if dim in dims]:
                fail(loc, f"argument {without[0]} is None, and nothing else says how long dim {dim} is",
                     f"pass {without[0]}", InputError)  # fmt: skip
            name = repr(dim) if isinstance(dim, str) else describe(dim)
            fail(loc, f"{name} is not a dim of this kernel", f"its dims are {', '.join(sorted(self.dims))}")
        return dim
