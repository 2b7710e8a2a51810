"""Where the elements of a consumer's tiles live: in which thread's registers, as Gluon wants it said for every tile.

One rule serves all: a tile lies as a product would leave it (``Product``), a vector as the rows or columns of such a tile
(``Slice``). Which tile that is follows from where the vector is used; variables have one layout for life, and what is wanted
in another is converted. Between tiles of the same rows a conversion of row vectors moves nothing across threads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kpt_dsl import ir
from kpt_dsl.emit.triton.axes import Axes
from kpt_dsl.emit.triton.expressions import ATOM, Expressions, Text
from kpt_dsl.emit.triton.facts import Facts
from kpt_dsl.emit.triton.names import Names

INSTRUCTION_COLUMNS, INSTRUCTION_BYTES = 256, 32
"""Most columns of one wgmma instruction, and bytes along k that it multiplies (PTX ISA, wgmma.mma_async)."""

GROUP_WARPS = 4
"""Warps of a warpgroup, which issue wgmma together."""


@dataclass(frozen=True, slots=True)
class Product:
    """As wgmma leaves a product of so many columns, in the registers of one warpgroup. ``depth``: elements along k of one
    instruction."""

    columns: int
    depth: int

    def __str__(self) -> str:
        return f"PRODUCT_{self.columns}"

    @property
    def definition(self) -> str:
        shape = [16, min(self.columns, INSTRUCTION_COLUMNS), self.depth]
        return f"gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[{GROUP_WARPS}, 1], instr_shape={shape})"


@dataclass(frozen=True, slots=True)
class Slice:
    """A vector as it lies beside a tile, along the axis that is left when ``dim`` is taken away."""

    dim: int
    of: Product

    def __str__(self) -> str:
        return f"gl.SliceLayout({self.dim}, {self.of})"


Layout = Product | Slice


class LaidOutAxes(Axes):
    """Axes whose vectors have layouts: one name for each axis and layout."""

    language = "gl"

    def __init__(self, facts: Facts, names: Names, tiles: Mapping[str, ir.Tile]) -> None:
        super().__init__(facts, names, tiles)
        self.wanted: dict[ir.Axis, Layout] = {}

    @contextmanager
    def widened(self, tile: ir.Tile, width: int) -> Iterator[None]:
        """A tile has ``width`` lanes, as many as all consumers have together."""
        before = self._tiles[tile.name]
        self._tiles[tile.name], self._widths[tile.axis] = tile, width
        yield
        self._tiles[tile.name], self._widths[tile.axis] = before, self.facts.lanes[tile.axis]

    def local(self, axis: ir.Axis) -> str:
        text = f"gl.arange(0, {self.lanes(axis)}, layout={self.wanted[axis]})"
        return self._define(axis, "index" if axis.tile is None else "lane", text)

    def _define(self, axis: ir.Axis, what: str, text: str) -> str:
        layout = None if what == "stop" else self.wanted.get(axis)
        name = self.names.of((what, axis, layout), f"{axis}_{what}")
        scope = self.top if axis.tile is None else self._scopes[axis.tile]
        scope.definitions.setdefault(name, text)
        return name


class LaidOutExpressions(Expressions):
    """Expressions in the layout that is wanted of them; ``row`` is the axis that consumers share out, ``wide`` the tile whose
    rows and columns vectors lie beside unless something else is asked for."""

    axes: LaidOutAxes

    def __init__(self, axes: LaidOutAxes, loaded: dict[ir.Read, str], row: ir.Axis, wide: Product) -> None:
        super().__init__(axes, loaded.__getitem__, frozenset(), "ieee")
        self.layouts: set[Product] = set()
        self._row, self._wide = row, wide
        self._want: Layout | None = None

    def home(self, shape: tuple[ir.Axis, ...]) -> Layout:
        """The layout that variables of a shape have."""
        if len(shape) == 1:
            return Slice(1, self._noted(self._wide)) if shape[0] == self._row else Slice(0, self._of(shape[0]))
        return self._of(shape[1])

    def _of(self, columns: ir.Axis) -> Product:
        return self._noted(self._wide if columns == ir.UNIT else replace(self._wide, columns=self.axes.width(columns)))

    def _noted(self, layout: Product) -> Product:
        self.layouts.add(layout)
        return layout

    def at_home(self, e: ir.Expr) -> str:
        """The text of an expression in the layout of variables of its shape."""
        return self.laid_out(e, self.home(e.type.shape)) if e.type.shape else self.text(e)

    def laid_out(self, e: ir.Expr, layout: Layout) -> str:
        """The text of an expression in a layout."""
        with self.wanting(layout):
            return self.text(e)

    @contextmanager
    def wanting(self, layout: Layout) -> Iterator[None]:
        """What is shown inside has this layout."""
        before, self._want = self._want, layout
        try:
            yield
        finally:
            self._want = before

    def filled(self, shape: tuple[ir.Axis, ...], value: str, dtype: str) -> str:
        return f"{super().filled(shape, value, dtype)[:-1]}, {self._want})"

    def _show(self, e: ir.Expr) -> Text:
        if not e.type.shape:
            return super()._show(e)
        assert self._want is not None, f"no layout is wanted of {type(e).__name__}"
        match e:
            case ir.Var() | ir.Load():
                return self._converted(super()._show(e)[0], self.home(e.type.shape)), ATOM
            case ir.Lanes(axis=axis) | ir.Valid(axis=axis):
                with self.vectors(self._want, axis):
                    return super()._show(e)
            case ir.Expand(axis=axis):
                assert isinstance(self._want, Product)
                with self.wanting(Slice(axis, self._want)):
                    return super()._show(e)
            case ir.Reduce(x=x, axis=axis):
                whole = self.home(x.type.shape)
                assert isinstance(whole, Product)
                with self.wanting(whole):
                    text, _ = super()._show(e)
                return self._converted(text, Slice(axis, whole)), ATOM
        return super()._show(e)

    @contextmanager
    def vectors(self, layout: Layout, axis: ir.Axis) -> Iterator[None]:
        """Vectors along an axis have this layout."""
        before = self.axes.wanted.get(axis)
        self.axes.wanted[axis] = layout
        try:
            yield
        finally:
            if before is None:
                del self.axes.wanted[axis]
            else:
                self.axes.wanted[axis] = before

    def _converted(self, text: str, layout: Layout) -> str:
        return text if layout == self._want else f"gl.convert_layout({text}, {self._want})"
