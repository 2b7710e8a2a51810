"""Triton source from tile IR: one module with one kernel, specialised on facts rather than on shapes.

Reads the kernel's IR, runs the passes that machines with fixed tiles need, and writes the text statement by statement; the
parts of that are in the modules beside this one. Imports no Triton: text is all it makes.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.emit import Source
from kpt_dsl.emit.gluon import module as gluon
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton import epilogue, outline
from kpt_dsl.emit.triton.abi import TritonAbi
from kpt_dsl.emit.triton.axes import Axes, Bounds, Scope
from kpt_dsl.emit.triton.checks import Checks
from kpt_dsl.emit.triton.expressions import Expressions
from kpt_dsl.emit.triton.facts import WARP_SPECIALISED, Facts, facts, tiles
from kpt_dsl.emit.triton.grid import Grid
from kpt_dsl.emit.triton.helpers import HELPERS
from kpt_dsl.emit.triton.memory import Memory
from kpt_dsl.emit.triton.names import Names
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.padding import guard
from kpt_dsl.passes.pipeline import counts
from kpt_dsl.passes.split import split_masks
from kpt_dsl.passes.starts import at_loaded_starts
from kpt_dsl.same import remembered

if TYPE_CHECKING:
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

__all__ = ["emit", "facts"]

IMPORTS = ("import triton", "import triton.language as tl")

COMPILER_OPTIONS = ("num_warps", "num_stages", "waves_per_eu", "matrix_instr_nonkdim", "kpack")
"""Knobs of a config that go to Triton's compiler: as they are, but for the stages of products whose operands are looked up.
There Triton deals stages out to the loads of the places as well, so that it takes two of them for each one of the knob."""


@remembered(1024)
def emit(kernel: ir.Kernel, known: Facts, target: "Target", config: "Config") -> Source:
    """Triton source of a kernel for a GPU and a config, whatever the extents of which these are the facts.

    A config with a schedule of its own gives Gluon source. Raises ConfigError where the kernel has no form for it.
    """
    kernel = settle(kernel)
    if config.get("schedule") == WARP_SPECIALISED:
        return gluon.emit(kernel, known, target, config)
    kernel = split_masks(guard(at_loaded_starts(kernel), known.padded, known.level), known.padded)
    return _Emitter(kernel, known, target, config).source()


class _Emitter:
    """State of writing one kernel."""

    def __init__(self, kernel: ir.Kernel, known: Facts, target: "Target", config: "Config") -> None:
        self.kernel, self.facts, self.target, self.config = kernel, known, target, config
        names = Names()
        for helper in HELPERS:
            names.new(helper)
        self.entry = names.new(kernel.name)
        self.axes = Axes(known, names, tiles(kernel))
        made = {e.type.dtype.name for e in ir.every_expr(kernel.body) if e.type.dtype.is_fp8}
        emulate = made.union(t.dtype.name for t in kernel.tensors) - target.dtypes
        precision = str(config.get("precision", "ieee"))
        self.expressions = Expressions(self.axes, self._loaded, frozenset(emulate), precision)
        described = bool(config.get("descriptors", False)) and target.descriptors
        self.checks = Checks.of(kernel, self.expressions) if config.get("checked", False) else None
        ranged = target.vendor == "amd"
        self.memory = Memory(kernel, self.expressions, described, frozenset(emulate), relaxed(kernel), ranged, self.checks)
        self.grid = Grid(kernel, self.memory, int(config.get("group", 1)))
        self.loads: dict[ir.Read, str] = {}
        self.policies: dict[tuple[int, ir.Load], str] = {}
        products = any(isinstance(e, ir.Dot) for e in ir.every_expr(kernel.body))
        self.ahead = 0 if products else int(config.get("num_stages", 0))

    # ------------------------------------------------------------------ the module
    def source(self) -> Source:
        body = Writer(depth=1)
        if self.config.get("persistent", False):
            self._persistent(body)
        else:
            body.line("program = tl.program_id(0)")
            self._program("program", body)
        report = self.checks.argument if self.checks else ()
        arguments = (*outline.arguments(self.kernel, self.axes, self.memory.arguments.values()), *report)
        out = Writer()
        outline.begin(out, self.kernel, self.target.arch, self.config, IMPORTS)
        for helper in HELPERS:
            if helper in self.expressions.helpers:
                out.line("\n" + HELPERS[helper])
        if self.checks and self.checks.places:
            out.line("\n" + self.checks.text)
        out.line()
        out.line()
        out.line("@triton.jit")
        out.call(f"def {self.entry}(", [a.name for a in arguments], tail="):", packed=True)
        with out.indented():
            for name, value in self.axes.constants.items():
                out.line(f"{name}: tl.constexpr = {value}")
            out.paste(body)
        persistent = bool(self.config.get("persistent", False))
        places = tuple(self.checks.places.values()) if self.checks else ()
        grid = tuple(outline.counted(g, self.facts.lanes[g.axis] if isinstance(g, ir.Tile) else 1) for g in self.kernel.grid)
        abi = TritonAbi(arguments, grid, persistent, self._options(), places=places)
        return Source("triton", self.entry, out.text(), abi)

    def _options(self) -> tuple[tuple[str, object], ...]:
        chosen = {name: self.config[name] for name in COMPILER_OPTIONS if name in self.config}
        if "num_stages" in chosen and any(map(_looks_up, ir.every_expr(self.kernel.body))):
            chosen["num_stages"] = 2 * int(chosen["num_stages"]) - 1
        return (*chosen.items(), ("enable_fp_fusion", True))

    # ------------------------------------------------------------------ one program
    def _persistent(self, out: Writer) -> None:
        tile = self.axes.names.new("tile")
        total = self.grid.total(out)
        # Flattened with the loop inside, so that the loads of the next tile run during the epilogue of this one.
        with out.block(f"for {tile} in tl.range(tl.program_id(0), {total}, tl.num_programs(0), flatten=True):"):
            self._program(tile, out)

    def _program(self, program: str, out: Writer) -> None:
        self.grid.write(program, out)
        # Of groups there may be fewer tiles than places for them.
        there = [f"{self.axes.start(tile)} < {self.axes.end(tile)}" for tile in ir.groups(self.kernel)]
        with out.block(f"if {' and '.join(there)}:") if there else nullcontext():
            body = Writer(out.depth)
            scopes = self._in_grid(list(self.kernel.grid), body)
            for scope in (self.axes.top, *scopes):
                _define(scope, out)
            out.paste(body)

    def _in_grid(self, grid: list[ir.Each | ir.Tile], out: Writer) -> list[Scope]:
        """The kernel's body inside the tiles of its grid; gives the scopes of these."""
        if not grid:
            self._body(out)
            return []
        first, rest = grid[0], grid[1:]
        if isinstance(first, ir.Each):
            return self._in_grid(rest, out)
        with self.axes.tile(first, self.axes.to_the_end(first)) as scope:
            return [scope, *self._in_grid(rest, out)]

    def _body(self, out: Writer) -> None:
        parts = int(self.config.get("epilogue", 1))
        found = epilogue.find(self.kernel) if parts > 1 else None
        if found is None:
            self._block(self.kernel.body, out)
            return
        self._block((*found.main, *found.once), out)
        for x in found.cut:
            self._cut(x, parts, out)
        columns = found.columns
        assert columns.tile is not None
        width = self.axes.width(columns) // parts
        tile = ir.Tile(f"{columns.tile}_part", columns.dim, f"block_{columns.dim}_part")
        for part in range(parts):
            names = {x.name: self._pieces(x.name, parts)[part] for x in found.cut}
            shift = f" + {part * width}" if part else ""
            out.line(f"{self.axes.start(tile.name)} = {self.axes.start(columns.tile)}{shift}")
            inner = Writer(out.depth)
            whole = next(g for g in self.kernel.grid if isinstance(g, ir.Tile) and g.axis == columns)
            with self.axes.tile(tile, self.axes.to_the_end(whole), width) as scope:
                narrowed = [epilogue.narrow(s, {columns: tile.axis}, names) for s in found.parted]
                self._block(tuple(narrowed), inner)
            _define(scope, out)
            out.paste(inner)

    def _pieces(self, variable: str, parts: int) -> list[str]:
        return [variable + side for side in epilogue.sides(parts)]

    def _cut(self, x: ir.Var, parts: int, out: Writer) -> None:
        """Cut a variable in halves, again and again."""
        width, pieces = self.axes.width(x.type.shape[1]), 1
        while pieces < parts:
            width //= 2
            for piece in self._pieces(x.name, pieces):
                left, right = (self.expressions.name(f"{piece}_{side}") for side in ("left", "right"))
                shape = f"[{self.axes.lanes(x.type.shape[0])}, 2, {width}]"
                cut = f"{self.expressions.name(piece)}.reshape({shape}).permute(0, 2, 1)"
                out.line(f"{left}, {right} = tl.split({cut})")
            pieces *= 2

    # ------------------------------------------------------------------ statements
    def _block(self, body: tuple[ir.Stmt, ...], out: Writer) -> None:
        for stmt in body:
            match stmt:
                case ir.Assign():
                    self._assign(stmt, out)
                case ir.Store():
                    self._load_all(stmt, out)
                    self.memory.store(stmt, out)
                case ir.For():
                    self._load_all(stmt, out)
                    if isinstance(stmt.over, ir.Tile):
                        self._loop(stmt, out)
                    else:
                        self._each(stmt, out)

    def _assign(self, stmt: ir.Assign, out: Writer) -> None:
        name = self.expressions.name(stmt.name)
        self._load_all(stmt, out, name)
        if isinstance(stmt.value, ir.Read):
            return
        text = self.expressions.text(stmt.value)
        if not stmt.value.type.shape and all(self._constant(x) for x in ir.walk(stmt.value)):
            # A plain number would be a constant to Triton, and constants cannot change in a loop.
            text = f"tl.full([], {text}, {self.expressions.dtype(stmt.value.type.dtype)})"
        out.line(f"{name} = {text}", stmt.loc)

    def _constant(self, e: ir.Expr) -> bool:
        known_later = ir.Param | ir.Var | ir.Index | ir.Start | ir.Stop | ir.Count | ir.Before | ir.Read
        return not isinstance(e, known_later) and not (
            isinstance(e, ir.Size) and e.dim not in self.facts.baked
        )

    def _each(self, loop: ir.For, out: Writer) -> None:
        """A loop through single indices."""
        index = self.axes.names.of(("index", loop.over.name), loop.over.name)
        low, high = self.expressions.text(loop.start), self.expressions.text(loop.stop)
        bounds = high if loop.start == ir.scalar(0) else f"{low}, {high}"
        with out.block(f"for {index} in tl.range({bounds}):", loop.loc):
            self._block(loop.body, out)

    def _loop(self, loop: ir.For, out: Writer) -> None:
        """A loop through tiles."""
        tile, names = loop.tile, self.axes.names
        block = self.axes.lanes(tile.axis)
        aligned = loop.aligned
        low, high = self.expressions.text(loop.start), self.expressions.text(loop.stop)
        ragged = loop.part != "interior"
        beyond = ragged and (loop.at_start or self.facts.padded(tile.axis))
        natural = aligned and isinstance(loop.stop, ir.Size) and loop.stop.dim == tile.dim
        named = isinstance(loop.stop, ir.Size | ir.Const) or (loop.at_start and isinstance(loop.stop, ir.Var))
        if ragged and not loop.share and not named:
            text, high = high, names.new(f"{tile.name}_last")
            out.line(f"{high} = {text}", loop.loc)
        if not aligned:
            text, low = low, names.new(f"{tile.name}_first")
            out.line(f"{low} = {text}", loop.loc)
        first = low if aligned else f"{low} // {block} * {block}"
        if not aligned and counts(loop):  # a turn without elements, which masks make harmless elsewhere, must not be
            first = f"tl.where({low} < {high}, {first}, {high})"
        inner = Writer(out.depth + 1)
        if loop.share:
            self.policies |= _read_again(loop)
        with self.axes.tile(tile, Bounds(None if aligned else low, high, ragged, beyond, natural)) as scope:
            self._block(loop.body, inner)
        ahead = f", num_stages={self.ahead}" if self.ahead and loop.share and loop.part != "tail" else ""
        with out.block(f"for {self.axes.start(tile.name)} in tl.range({first}, {high}, {block}{ahead}):", loop.loc):
            _define(scope, out)
            out.paste(inner)

    # ------------------------------------------------------------------ loads inside expressions
    def _load_all(self, stmt: ir.Stmt, out: Writer, name: str | None = None) -> None:
        """Write the loads inside a statement's expressions, innermost first, each under a name of its own.

        ``name``: that of the variable a statement assigns, for a load that is its whole value.
        """
        self.loads = {}
        count: Counter[str] = Counter()
        for top in ir.expressions(stmt):
            for e in _innermost_first(top):
                if isinstance(e, ir.Read) and e not in self.loads:
                    key = ("loaded", e.tensor, count[e.tensor], out.depth)
                    count[e.tensor] += 1
                    mine = name if e is top and name else self.axes.names.of(key, f"{e.tensor}_tile")
                    policy = self.policies.get((id(stmt), e), "") if isinstance(e, ir.Load) else ""
                    self.memory.load(e, out, stmt.loc, mine, policy)
                    self.loads[e] = mine

    def _loaded(self, e: ir.Read) -> str:
        return self.loads[e]


def _read_again(loop: ir.For) -> dict[tuple[int, ir.Load], str]:
    """Cache policies of the tiles that a loop's body reads in several statements: by statement and load.

    A kernel reads a tile again so as not to hold it meanwhile: the first time it asks the caches to keep it, the last time, if
    it is of this turn only, to let it go. Reads that differ so are also two to the compiler, which else makes them one.
    """
    readers: dict[ir.Load, list[int]] = {}
    for stmt in loop.body:
        loads = {e for top in ir.expressions(stmt) for e in ir.walk(top) if isinstance(e, ir.Load)}
        for e in loads:
            readers.setdefault(e, []).append(id(stmt))
    policies: dict[tuple[int, ir.Load], str] = {}
    for e, places in readers.items():
        if len(places) > 1 and loop.tile.axis in e.index:
            policies |= {(places[0], e): "evict_last", (places[-1], e): "evict_first"}
        elif len(places) > 1:
            policies[places[-1], e] = "evict_last"
    return policies


def relaxed(kernel: ir.Kernel) -> dict[ir.Load, frozenset[ir.Axis]]:
    """Axes along which a load's padding may hold anything after all: it is only ever the operand of products, which read zeros
    along the axis they sum over and give padding lanes of their other axes unknown values anyway (``passes.padding``)."""
    free: dict[ir.Load, frozenset[ir.Axis]] = {}
    uses: Counter[ir.Load] = Counter(e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Load))
    for e in ir.every_expr(kernel.body):
        if isinstance(e, ir.Dot):
            for operand in (e.a, e.b):
                x = operand.x if isinstance(operand, ir.Transpose) else operand
                if isinstance(x, ir.Load):
                    other = frozenset(x.masked) - {e.a.type.shape[1]}
                    free[x] = free.get(x, other) & other
                    uses[x] -= 1
    return {e: axes for e, axes in free.items() if not uses[e]}


def _innermost_first(e: ir.Expr) -> Iterator[ir.Expr]:
    for child in ir.children(e):
        yield from _innermost_first(child)
    yield e


def _define(scope: Scope, out: Writer) -> None:
    for name, text in scope.definitions.items():
        out.line(f"{name} = {text}")


def _looks_up(e: ir.Expr) -> bool:
    """Whether it is a product of what is gathered from places that were loaded."""
    if not isinstance(e, ir.Dot):
        return False
    places = (i for side in (e.a, e.b) for g in ir.walk(side) if isinstance(g, ir.Gather) for i in g.index)
    return any(isinstance(x, ir.Read) for i in places if isinstance(i, ir.Expr) for x in ir.walk(i))
