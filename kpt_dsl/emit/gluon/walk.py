"""How the partitions of a generated Gluon module walk: a program's tiles one after another, and the steps of each tile.

Producer and consumers number steps alike, on across the tiles of a persistent program: slots of the rings are taken in turn,
and a barrier's phase tells even turns from odd ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kpt_dsl import ir
from kpt_dsl.emit.gluon.layouts import LaidOutAxes
from kpt_dsl.emit.text import Writer

TILES_AHEAD = 2
"""Tiles of which a persistent program has what consumers hold: the one at work, and the next."""


class Walk:
    """The names and texts of one module's walk. ``tile``: that of its loop."""

    def __init__(self, axes: LaidOutAxes, tile: ir.Tile, persistent: bool) -> None:
        self.persistent = persistent
        self.start, self.block = axes.start(tile.name), axes.lanes(tile.axis)
        new = axes.names.new
        self.begin, self.end = new(f"{tile.name}_begin"), new(f"{tile.name}_end")
        self.beyond = new(f"{tile.name}_beyond")
        """From where on no consumer of a tile has an element."""
        self.step, self.slot = new("step"), new("slot")
        self.number, self.tiles = new("tile"), new("tiles")
        self._steps_done, self._tiles_done = new("steps_done"), new("tiles_done")
        if persistent:
            axes.constant("AHEAD", TILES_AHEAD)
        self.place = Writer(depth=2)
        """Where the tile of that number is: what each tile of a persistent program begins with."""

    @contextmanager
    def each_tile(self, out: Writer) -> Iterator[None]:
        """What is written inside is done for the program's tile, or for each of its tiles in turn."""
        if not self.persistent:
            yield
            return
        out.line(f"{self._steps_done} = 0")
        out.line(f"{self._tiles_done} = 0")
        with out.block(f"for {self.number} in range(program, {self.tiles}, programs):"):
            out.paste(self.place)
            yield
            out.line(f"{self._steps_done} += gl.cdiv({self.end} - {self.begin}, {self.block})")
            out.line(f"{self._tiles_done} += 1")

    @contextmanager
    def each_step(self, out: Writer, low: str, high: str, loc: ir.Loc | None = None) -> Iterator[None]:
        """What is written inside is done for each step of a tile from ``low`` up to ``high``, which has a number and a slot."""
        with out.block(f"for {self.start} in range({low}, {high}, {self.block}):", loc):
            out.line(f"{self.step} = {self.count(self.start)}")
            out.line(f"{self.slot} = {self.step} % SLOTS")
            yield

    def count(self, start: str) -> str:
        """The number of the step that ``start`` is in, as text."""
        here = f"({start} - {self.begin}) // {self.block}"
        return f"{self._steps_done} + {here}" if self.persistent else here

    @property
    def first(self) -> tuple[str, str]:
        """Slot and phase of a tile's first step."""
        return (f"{self._steps_done} % SLOTS", f"{self._steps_done} // SLOTS & 1") if self.persistent else ("0", "0")

    @property
    def held(self) -> tuple[str, str]:
        """Which buffer a consumer holds its tile in, and the phase of its barriers."""
        if not self.persistent:
            return "consumer", "0"
        return f"{self._tiles_done} % AHEAD * CONSUMERS + consumer", f"{self._tiles_done} // AHEAD & 1"
