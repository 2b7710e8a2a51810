"""Gluon source from tile IR, for chips that reward a schedule of their own: one warp that loads, warpgroups that multiply.

The module has the kernel's entry, which says who gets what, and a function for each part: ``load_tiles``, ``multiply``, and the
work between products (``gluon_partitions``). What a function needs from outside is read off its text. Imports no Triton.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.emit import Source, gluon_names
from kpt_dsl.emit.gluon_functions import define
from kpt_dsl.emit.gluon_layouts import GROUP_WARPS, INSTRUCTION_BYTES, LaidOutAxes, LaidOutExpressions, Product
from kpt_dsl.emit.gluon_partitions import LEFT, Partitions
from kpt_dsl.emit.gluon_shared import SWIZZLES, Shared, layout_name
from kpt_dsl.emit.text import Writer, in_docstring
from kpt_dsl.emit.triton_abi import Argument, Descriptor, Extent, Pointer, Scalar, Stride, TritonAbi
from kpt_dsl.emit.triton_axes import Bounds, Scope
from kpt_dsl.emit.triton_facts import Facts, facts, tiles
from kpt_dsl.emit.triton_grid import Grid
from kpt_dsl.emit.triton_helpers import HELPERS
from kpt_dsl.emit.triton_memory import Memory
from kpt_dsl.emit.triton_names import Names
from kpt_dsl.errors import ConfigError
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.padding import guard
from kpt_dsl.passes.pipeline import Pipeline, Unfit, pipeline

if TYPE_CHECKING:
    from kpt_dsl.problem import Problem
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

PRODUCER_REGISTERS = 24
"""Registers of a thread that loads: the least that setmaxnreg takes (PTX ISA)."""


def emit(problem: "Problem", target: "Target", config: "Config") -> Source:
    """Gluon source of a problem for a GPU and a config with ``schedule=warp_specialised``.

    Raises ConfigError where the kernel cannot be cut into producer and consumers, or a block is missing.
    """
    kernel = problem.lower({name: config[name] for name, _ in problem.lower().choices if name in config})
    kernel = settle(kernel)
    known = facts(problem, kernel, config)
    row = row_tile(kernel)
    if row is not None and dict(problem.dims)[row.dim] % (known.lanes[row.axis] * int(config["consumers"])):
        known = replace(known, ragged=known.ragged | {row.axis})
    try:
        plan = pipeline(guard(kernel, known.padded, known.level))
    except Unfit as reason:
        raise ConfigError(f"{kernel.name} has no warp-specialised schedule: {reason}") from None
    assert row is not None, "a pipeline has a product with rows"
    return Module(kernel, plan, row, known, target, config).source()


def row_tile(kernel: ir.Kernel) -> ir.Tile | None:
    """The tile of the grid whose rows consumers share out: that of the last product."""
    dots = [e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Dot)]
    rows = dots[-1].type.shape[0] if dots else None
    return next((g for g in kernel.grid if isinstance(g, ir.Tile) and g.axis == rows), None)


def in_gluon(helper: str) -> str:
    """A function of a Triton module for one of Gluon."""
    return re.sub(r"\btl\.(?!PropagateNan)", "gl.", helper.replace("@triton.", "@gluon."))


class Module:
    """State of writing one module."""

    def __init__(
        self, kernel: ir.Kernel, plan: Pipeline, row: ir.Tile, known: Facts, target: "Target", config: "Config"
    ) -> None:
        self.kernel, self.plan, self.row, self.facts = kernel, plan, row, known
        self._target, self._config = target, config
        consumers, slots = int(config["consumers"]), int(config["num_stages"])
        self._consumers = consumers
        self.overlap = bool(config.get("overlap", False))
        self.persistent = bool(config.get("persistent", False))
        names = Names()
        layouts = {str(Product(width, 0)) for width in known.lanes.values()}
        layouts |= {layout_name(t.dtype.bits, swizzle) for t in kernel.tensors for swizzle in SWIZZLES}
        for taken in (*gluon_names.RESERVED, *gluon_names.LOCAL, *layouts, LEFT, *HELPERS):
            names.new(taken)
        self._name = names.new(kernel.name)
        self.axes = LaidOutAxes(known, names, tiles(kernel))
        for constant, value in (("CONSUMERS", consumers), ("SLOTS", slots), ("REGISTERS", int(config["registers"]))):
            self.axes.constant(constant, value)
        columns = (plan.masked.link or plan.masked.product).value.type.shape[1]
        product = plan.masked.product.value
        assert isinstance(product, ir.Dot)
        wide = Product(self.axes.width(columns), INSTRUCTION_BYTES // product.a.type.dtype.bytes)
        self.loads: dict[ir.Load, str] = {}
        self.expressions = LaidOutExpressions(self.axes, self.loads, row.axis, wide)
        self.memory = Memory(kernel, self.expressions, descriptors=False, emulate=frozenset(), relaxed={})
        self.shared = Shared(kernel, self.axes, self.memory, plan, row.axis, consumers, slots, self.persistent)
        loop = plan.loop
        self.low = names.new(f"{loop.tile.name}_first")
        self.high = (
            self.axes.extent(loop.tile.dim) if isinstance(loop.stop, ir.Size) else names.new(f"{loop.tile.name}_last")
        )

    def bounds(self, tile: ir.Tile) -> Bounds:
        """The bounds of a parallel tile: its dim's."""
        ragged = self.facts.padded(tile.axis)
        return Bounds(None, self.axes.extent(tile.dim), ragged, beyond=ragged, natural=True)

    @contextmanager
    def tiles(self, row: ir.Tile) -> Iterator[list[Scope]]:
        """The tiles of the grid in scope, with ``row`` as the one that consumers share out."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    self.axes.tile(tile, self.bounds(tile), self._block(tile) if tile != self.row else None)
                )
                for tile in (row if entry.name == row.name else entry for entry in self.kernel.grid)
                if isinstance(tile, ir.Tile)
            ]

    def source(self) -> Source:
        partitions = Partitions(self)
        entry = Writer(depth=1)
        self._begin(partitions, entry)
        functions = partitions.functions()
        self.shared.allocate(entry)
        self._roles(partitions, entry)
        arguments = self._arguments()
        layouts = {str(p): p.definition for p in sorted(self.expressions.layouts, key=lambda p: p.columns)}
        out = Writer()
        for constants in (self.axes.constants, layouts, self.shared.layouts, partitions.layouts):
            for name, value in constants.items():
                out.line(f"{name} = gl.constexpr({value})")
        for helper in HELPERS:
            if helper in self.expressions.helpers:
                out.line("\n\n" + in_gluon(HELPERS[helper]))
        for function in functions:
            function.write(out)
        out.line("\n\n@gluon.jit")
        out.call(f"def {self._name}(", [a.name for a in arguments], tail="):", packed=True)
        out.paste(entry)
        grid = tuple((g.dim, self._block(g) if isinstance(g, ir.Tile) else 1) for g in self.kernel.grid)
        options = (("num_warps", GROUP_WARPS), ("enable_fp_fusion", True))
        head = Writer()
        self._header(head, keeps_nan="tl.PropagateNan" in out.text())
        head.paste(out)
        return Source("triton", self._name, head.text(), TritonAbi(arguments, grid, self.persistent, options, "gluon"))

    def _block(self, tile: ir.Tile) -> int:
        """How many indices a program covers: the rows of all its consumers."""
        return self.facts.lanes[tile.axis] * (self._consumers if tile.axis == self.row.axis else 1)

    def _header(self, out: Writer, keeps_nan: bool) -> None:
        where = f"{in_docstring(Path(self.kernel.loc.file).name)}, line {self.kernel.loc.line}"
        out.line(f'"""{self.kernel.name} for {self._target.arch}, generated by kpt from {where}.')
        out.line()
        out.line(f"Config: {in_docstring(str(self._config))}")
        out.line('"""')
        out.line()
        for line in (*gluon_names.IMPORTS, *[gluon_names.NAN_IMPORT] * keeps_nan):
            out.line(line)
        out.line()

    def _arguments(self) -> tuple[Argument, ...]:
        order = {t.name: i for i, t in enumerate(self.kernel.tensors)}
        used = [*self.shared.descriptors.values(), *self.memory.arguments.values()]
        tensors = sorted((a for a in used if isinstance(a, Pointer | Descriptor)), key=lambda a: order[a.tensor])
        strides = sorted((a for a in used if isinstance(a, Stride)), key=lambda a: (order[a.tensor], a.axis))
        scalars = [
            Scalar(self.axes.names.of(("scalar", s.name), s.name), s.name, s.dtype.name) for s in self.kernel.scalars
        ]
        extents = [Extent(name, dim, dim in self.facts.divisible) for dim, name in self.axes.extents.items()]
        return (*tensors, *scalars, *extents, *strides)

    # ------------------------------------------------------------------ the entry
    def _begin(self, partitions: Partitions, out: Writer) -> None:
        """Where the program stands; or, where it has one tile after another, which these are."""
        out.line("program = gl.program_id(0)")
        grid = Grid(self.kernel, self.axes, int(self._config.get("group", 1)), self.persistent)
        wide = replace(self.row, block=f"tile_{self.row.dim}")
        with self.axes.widened(wide, self._block(wide)):
            if not self.persistent:
                self._place(grid, wide, "program", partitions, out)
                return
            out.line("programs = gl.num_programs(0)")
            out.line(f"{partitions.walk.tiles} = {grid.total(out)}")
            self._place(grid, wide, partitions.walk.number, partitions, partitions.walk.place)

    def _place(self, grid: Grid, wide: ir.Tile, number: str, partitions: Partitions, out: Writer) -> None:
        """Write where the tile of a ``number`` is, and the bounds of its loop."""
        grid.write(number, out)
        body, walk = Writer(out.depth), partitions.walk
        with self.tiles(wide) as scopes:
            self.limits(body)
            start, block = self.plan.loop.start, self.axes.lanes(self.plan.loop.tile.axis)
            low = self.low if not isinstance(start, ir.Const) else str(start.value)
            body.line(f"{walk.begin} = {f'{low} // {block} * {block}' if low != '0' else 0}", self.plan.loop.loc)
            body.line(f"{walk.end} = {self.steps_end(walk.begin, self.persistent)}")
        for scope in scopes:
            define(scope, out)
        out.paste(body)

    def limits(self, out: Writer) -> None:
        """Write the scalars of the kernel, and from where to where its loop runs, for the rows that are in scope."""
        loop = self.plan.loop
        for stmt in self.plan.scalars:
            out.line(f"{self.expressions.name(stmt.name)} = {self.expressions.text(stmt.value)}", stmt.loc)
        if not isinstance(loop.start, ir.Const):
            out.line(f"{self.low} = {self.expressions.text(loop.start)}", loop.loc)
        if not isinstance(loop.stop, ir.Size):
            out.line(f"{self.high} = {self.expressions.text(loop.stop)}", loop.loc)

    def steps_end(self, begin: str, counted: bool) -> str:
        """Where the steps of the loop end, as text: after one at least where consumers take the first by itself, and never
        before they begin where they are ``counted``."""
        loop = self.plan.loop
        least = f"{begin} + 1" if self.overlap else begin if counted else ""
        full = isinstance(loop.start, ir.Const) and isinstance(loop.stop, ir.Size)
        return f"gl.maximum({self.high}, {least})" if least and not full else self.high

    def _roles(self, partitions: Partitions, out: Writer) -> None:
        consumer, producer = partitions.consumer, partitions.producer
        warps = [*[str(GROUP_WARPS)] * (self._consumers - 1), "1"]
        registers = [*["REGISTERS"] * (self._consumers - 1), str(PRODUCER_REGISTERS)]
        with out.block("gl.warp_specialize("):
            with out.block("["):
                for i in range(self._consumers):
                    out.call(f"({consumer.name}, (", consumer.arguments(str(i)), tail=")),", packed=True)
                out.call(f"({producer.name}, (", producer.arguments(), tail=")),", packed=True)
            out.line("],")
            out.line(f"[{', '.join(warps)}],")
            out.line(f"[{', '.join(registers)}],")
        out.line(")")
