"""The order in which programs take the tiles of a grid, as Triton text.

Programs are numbered along one grid axis. The innermost parallel loop runs fastest; with ``group`` > 1 the last two tiled
loops are walked in groups of so many rows, whose programs share the columns they read while these are in the L2 cache. Where
only the last loop is tiled, ``group`` indices of the others take turns at each of its tiles: long programs then come first
among many, and the last to run are short (longest processing time first, Graham 1969). Programs that take tiles in turn would
so get the longer ones of every round: for them every second group before the last runs the other way round.
"""

from dataclasses import dataclass, field
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Axes
from kpt_dsl.emit.triton.memory import Memory


def heavy(kernel: ir.Kernel) -> frozenset[str]:
    """The parallel tiles whose later programs do more: the end of a loop depends on where they stand (causal attention)."""
    tiles = {g.name for g in kernel.grid if isinstance(g, ir.Tile)}
    reached: dict[str, set[str]] = {}

    def tiles_in(e: ir.Expr) -> set[str]:
        found: set[str] = set()
        for x in ir.walk(e):
            if isinstance(x, ir.Start | ir.Stop) and x.tile in tiles:
                found.add(x.tile)
            elif isinstance(x, ir.Var):
                found |= reached.get(x.name, set())
        return found

    ends: dict[str, set[str]] = {}
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.Assign) and not stmt.value.type.shape:
            reached[stmt.name] = reached.get(stmt.name, set()) | tiles_in(stmt.value)
        elif isinstance(stmt, ir.For):  # of the parts that a loop was split into, the last one ends where the loop did
            ends[stmt.over.name] = tiles_in(stmt.stop)
    return frozenset[str]().union(*ends.values())


@dataclass
class Grid:
    """Writes the order of one kernel's programs. ``group``: rows of tiles in a group, 1 for plain order; ``in_turn``: whether
    programs take tiles in turn, which differ in length. ``memory``: by which the places of groups are read."""

    kernel: ir.Kernel
    memory: Memory
    group: int
    in_turn: bool = False
    _counts: dict[str, str] = field(default_factory=dict)

    @property
    def axes(self) -> Axes:
        return self.memory.expressions.axes

    @cached_property
    def _reversed(self) -> frozenset[str]:
        return heavy(self.kernel)

    def total(self, out: Writer) -> str:
        """How many programs' worth of tiles there are, as text."""
        return " * ".join(self._count(entry, out) for entry in self.kernel.grid)

    def write(self, program: str, out: Writer) -> None:
        """Write the indices and tile starts that number ``program`` stands for."""
        grid, rest = self.kernel.grid, program
        if self._grouped():
            rest = self._write_group(program, out)
            grid = grid[:-2]
        elif (self.group > 1 or self.in_turn) and len(grid) > 1:
            rest = self._write_turns(program, out)
            grid = grid[:-1]
        for position, entry in reversed(list(enumerate(grid))):
            number = self._count(entry, out) if position or entry.name in self._reversed else ""
            mine = f"{rest} % {number}" if position else rest
            self._place(entry, mine, number, out)
            rest = f"{rest} // {number}"

    def _count(self, entry: ir.Each | ir.Tile, out: Writer) -> str:
        """How many programs one parallel loop has: a name, written where it is first asked for."""
        if entry.name not in self._counts:
            text = self.axes.extent(entry.dim)
            if isinstance(entry, ir.Tile) and (entry.groups or self.axes.facts.lanes[entry.axis] > 1):
                name, block = self.axes.names.new(f"{entry.name}_tiles"), self.axes.lanes(entry.axis)
                if entry.groups:  # a tile more for each, at most
                    count = f"{text} // {block} + {self.axes.extent(entry.groups.dim)} - 1"
                else:
                    count = f"{self.axes.language}.cdiv({text}, {block})"
                out.line(f"{name} = {count}")
                text = name
            self._counts[entry.name] = text
        return self._counts[entry.name]

    def _grouped(self) -> bool:
        inner = self.kernel.grid[-2:]
        return self.group > 1 and len(inner) == 2 and all(isinstance(entry, ir.Tile) for entry in inner)

    def _write_turns(self, program: str, out: Writer) -> str:
        """The last loop's tile; gives the number of the plane, which stands for the indices of the other loops."""
        axes, new = self.axes, self.axes.names.new
        *outer, last = self.kernel.grid
        tiles, planes = self._count(last, out), " * ".join(self._count(entry, out) for entry in outer)
        size = axes.constant("GROUP", self.group)
        first, width, within, turn, plane = (
            new(w) for w in ("group_first", "group_planes", "within_group", "nth", "plane")
        )
        out.line(f"{first} = {program} // ({size} * {tiles}) * {size}")
        out.line(f"{width} = {axes.language}.minimum({planes} - {first}, {size})")
        out.line(f"{within} = {program} % ({size} * {tiles})")
        out.line(f"{turn} = {within} // {width}")
        if self.in_turn and last.name in self._reversed:
            onward = f"({planes} - 1 - {first}) // {size} % 2 == 0"
            out.line(f"{turn} = {axes.language}.where({onward}, {turn}, {tiles} - 1 - {turn})")
        self._place(last, turn, tiles, out)
        out.line(f"{plane} = {first} + {within} % {width}")
        return plane

    def _place(self, entry: ir.Each | ir.Tile, mine: str, number: str, out: Writer) -> None:
        """Write the index or the tile start of one loop, given which of ``number`` it is."""
        if isinstance(entry, ir.Each):
            out.line(f"{self.axes.names.of(('index', entry.name), entry.name)} = {mine}")
        elif entry.name in self._reversed:
            self._begin(entry, f"({number} - 1 - {mine})", out, "  # longest first")
        else:
            self._begin(entry, mine, out)

    def _begin(self, entry: ir.Tile, mine: str, out: Writer, why: str = "") -> None:
        """Write where the tile of one loop begins, and its group, if it keeps within one."""
        axes, start, block = self.axes, self.axes.start(entry.name), self.axes.lanes(entry.axis)
        if entry.groups is None:
            out.line(f"{start} = {mine} * {block}{why}")
            return
        self.memory.expressions.helpers.add("tile_of_group")
        index = axes.names.of(("index", entry.groups.index), entry.groups.index)
        starts, stride = self.memory.vector(entry.groups.tensor)
        groups, extent = f"{axes.extent(entry.groups.dim)} - 1", axes.extent(entry.dim)
        out.call(f"{index}, {start}, {axes.end(entry.name)} = tile_of_group(", [mine, starts, stride, groups, extent, block])

    def _write_group(self, program: str, out: Writer) -> str:
        """The tiles of the last two loops; gives what is left of the program's number for the outer loops."""
        axes, new = self.axes, self.axes.names.new
        rows, columns = self.kernel.grid[-2:]
        row_tiles, column_tiles = self._count(rows, out), self._count(columns, out)
        plane = program
        if len(self.kernel.grid) > 2:
            plane = new("plane")
            out.line(f"{plane} = {program} % ({row_tiles} * {column_tiles})")
        size = axes.constant("GROUP", self.group)
        first, height, within = new("group_first"), new("group_rows"), new("within_group")
        out.line(f"{first} = {plane} // ({size} * {column_tiles}) * {size}")
        out.line(f"{height} = {axes.language}.minimum({row_tiles} - {first}, {size})")
        out.line(f"{within} = {plane} % ({size} * {column_tiles})")
        assert isinstance(rows, ir.Tile)
        assert isinstance(columns, ir.Tile)
        self._begin(rows, f"({first} + {within} % {height})", out)
        self._begin(columns, f"{within} // {height}", out)
        return f"{program} // ({row_tiles} * {column_tiles})"
