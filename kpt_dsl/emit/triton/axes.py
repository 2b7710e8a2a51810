"""Indices, masks and bounds of tile axes in a generated Triton module, written down only where they are asked for.

A *scope* is where one tile variable (or the whole dims) is defined: the top of the kernel, or the top of a loop. Asking an axis
for one of its vectors gives its name and notes the need; the scope's definitions are written before its body.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kpt_dsl import ir
from kpt_dsl.emit.triton.facts import Facts
from kpt_dsl.emit.triton.names import Names


@dataclass
class Scope:
    """The definitions that one tile variable, or one whole dim, needs."""

    definitions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """Where the valid lanes of a tile lie: from ``low`` (None: no bound) up to ``high``, texts of scalars.

    ``ragged``: lanes may lie beyond the bounds. ``beyond``: even beyond the end of the dim, where there is no memory.
    ``natural``: the bounds are those of the dim.
    """

    low: str | None
    high: str
    ragged: bool
    beyond: bool
    natural: bool


def spread(text: str, own: tuple[ir.Axis, ...], kept: tuple[ir.Axis, ...]) -> str:
    """A tile along some axes of another, shaped to broadcast against that."""
    if len(own) == len(kept):
        return text
    return f"{text}[{', '.join(':' if a in own else 'None' for a in kept)}]"


class Axes:
    """The tile variables and whole dims in scope."""

    language = "tl"
    """What the generated module calls the language that it is written in."""

    def __init__(self, facts: Facts, names: Names, tiles: Mapping[str, ir.Tile]) -> None:
        self.facts = facts
        self.names = names
        self._widths = dict(facts.lanes)
        self._tiles = dict(tiles)
        self.top = Scope()
        self.constants: dict[str, int] = {}
        self.extents: dict[str, str] = {}
        self._scopes: dict[str, Scope] = {}
        self._bounds: dict[str, Bounds] = {}

    @contextmanager
    def tile(self, tile: ir.Tile, bounds: Bounds, width: int | None = None) -> Iterator[Scope]:
        """A tile variable comes into scope, one of another ``width`` than its block where that is given."""
        self._widths[tile.axis] = width or self.facts.lanes[tile.axis]
        self._tiles[tile.name] = tile
        self._bounds[tile.name] = bounds
        self._scopes[tile.name] = scope = Scope()
        yield scope
        del self._scopes[tile.name], self._bounds[tile.name]

    def to_the_end(self, tile: ir.Tile) -> Bounds:
        """The bounds of a parallel tile: its dim's, or its group's."""
        if tile.groups is not None:
            return Bounds(None, self.end(tile.name), ragged=True, beyond=True, natural=False)
        ragged = self.facts.padded(tile.axis)
        return Bounds(None, self.extent(tile.dim), ragged, beyond=ragged, natural=True)

    def extent(self, dim: str) -> str:
        """The name of a dim's extent: a constant for baked dims, an argument for others."""
        if dim in self.facts.baked:
            return self.constant(dim, self.facts.baked[dim])
        return self.extents.setdefault(dim, self.names.of(("extent", dim), dim))

    def constant(self, wanted: str, value: int) -> str:
        """The name of a constant, written at the top of the kernel."""
        name = self.names.of(("constant", wanted, value), wanted)
        self.constants[name] = value
        return name

    def width(self, axis: ir.Axis) -> int:
        """How many lanes an axis has."""
        return self._widths[axis]

    def lanes(self, axis: ir.Axis) -> str:
        """How many lanes an axis has, as the name of a constant."""
        if axis == ir.UNIT:
            return "1"
        n = self._widths[axis]
        if axis.tile is not None:
            return self.constant(self._tiles[axis.tile].block.upper(), n)
        return self.extent(axis.dim) if n == self.facts.baked[axis.dim] else self.constant(f"BLOCK_{axis.dim}", n)

    def start(self, tile: str) -> str:
        """First index of a tile."""
        return self.names.of(("start", tile), f"{tile}_start")

    def end(self, tile: str) -> str:
        """Where the group of a tile ends, if it keeps within one."""
        return self.names.of(("end", tile), f"{tile}_end")

    def first(self, tile: str) -> str:
        """First valid index of a tile."""
        low = self._bounds[tile].low
        if low is None:
            return self.start(tile)
        return self._define(self._tiles[tile].axis, "from", f"{self.language}.maximum({self.start(tile)}, {low})")

    def stop(self, tile: str) -> str:
        """One past the last valid index of a tile."""
        bounds = self._bounds[tile]
        end = f"{self.start(tile)} + {self.block(tile)}"
        return self._define(
            self._tiles[tile].axis, "stop", f"{self.language}.minimum({end}, {bounds.high})" if bounds.ragged else end
        )

    def block(self, tile: str) -> str:
        """How many lanes a tile has, as the name of a constant."""
        return self.lanes(self._tiles[tile].axis)

    def local(self, axis: ir.Axis) -> str:
        """Lane numbers, from zero."""
        return self._define(axis, "index" if axis.tile is None else "lane", f"{self.language}.arange(0, {self.lanes(axis)})")

    def index(self, axis: ir.Axis) -> str:
        """Indices along the dim."""
        if axis.tile is None:
            return self.local(axis)
        return self._define(axis, "index", f"{self.start(axis.tile)} + {self.local(axis)}")

    def beyond_memory(self, axis: ir.Axis) -> bool:
        """Whether lanes may lie beyond the end of the dim, where there is no memory."""
        return self.facts.padded(axis) if axis.tile is None else self._bounds[axis.tile].beyond

    def natural(self, axis: ir.Axis) -> bool:
        """Whether exactly the lanes beyond the end of the dim are padding."""
        return axis.tile is None or self._bounds[axis.tile].natural

    def valid(self, axis: ir.Axis) -> str:
        """The mask of lanes that hold an element."""
        if axis.tile is None:
            return self._define(axis, "valid", f"{self.index(axis)} < {self.extent(axis.dim)}")
        bounds = self._bounds[axis.tile]
        below = f"{self.index(axis)} < {bounds.high}"
        if bounds.low is not None:
            below = f"({self.index(axis)} >= {bounds.low}) & ({below})"
        return self._define(axis, "valid", below)

    def inside(self, axis: ir.Axis) -> str:
        """Lane numbers with those beyond the end of the dim brought to its beginning.

        Brought to its last element they would all read one place, as those of every program that reads this tile: products of
        272 x 2048 x 2048 took 30 us for 17 on an H200.
        """
        if not self.beyond_memory(axis):
            return self.local(axis)
        wrapped = f"{self.index(axis)} % {self.extent(axis.dim)}"
        return self._define(axis, "inside", wrapped if axis.tile is None else f"{wrapped} - {self.start(axis.tile)}")

    def _define(self, axis: ir.Axis, what: str, text: str) -> str:
        name = self.names.of((what, axis), f"{axis}_{what}")
        scope = self.top if axis.tile is None else self._scopes[axis.tile]
        scope.definitions.setdefault(name, text)
        return name
