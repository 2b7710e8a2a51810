"""What the functions of a generated Gluon module have in common: names, memory, and the bounds of the loop that they share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.emit.gluon.layouts import INSTRUCTION_BYTES, LaidOutAxes, LaidOutExpressions, Product
from kpt_dsl.emit.gluon.shared import SWIZZLES, Shared, layout_name
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Bounds, Scope
from kpt_dsl.emit.triton.facts import Facts, tiles
from kpt_dsl.emit.triton.helpers import HELPERS
from kpt_dsl.emit.triton.memory import Memory
from kpt_dsl.emit.triton.names import Names
from kpt_dsl.passes.pipeline import Pipeline

if TYPE_CHECKING:
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target


class Program:
    """State of writing one module."""

    def __init__(
        self, kernel: ir.Kernel, plan: Pipeline, row: ir.Tile, known: Facts, target: "Target", config: "Config"
    ) -> None:
        self.kernel, self.plan, self.row, self.facts = kernel, plan, row, known
        self.target, self.config = target, config
        consumers, slots = int(config["consumers"]), int(config["num_stages"])
        self.consumers = consumers
        self.overlap = bool(config.get("overlap", False))
        self.persistent = bool(config.get("persistent", False))
        names = Names()
        layouts = {str(Product(width, 0)) for width in known.lanes.values()}
        layouts |= {layout_name(t.dtype.bits, swizzle) for t in kernel.tensors for swizzle in SWIZZLES}
        for taken in (*vocabulary.RESERVED, *vocabulary.LOCAL, *layouts, vocabulary.LEFT, *HELPERS):
            names.new(taken)
        self.name = names.new(kernel.name)
        self.axes = LaidOutAxes(known, names, tiles(kernel))
        for constant, value in (("CONSUMERS", consumers), ("SLOTS", slots), ("REGISTERS", int(config["registers"]))):
            self.axes.constant(constant, value)
        columns = (plan.masked.link or plan.masked.product).value.type.shape[1]
        product = plan.masked.product.value
        assert isinstance(product, ir.Dot)
        wide = Product(self.axes.width(columns), INSTRUCTION_BYTES // product.a.type.dtype.bytes)
        self.loads: dict[ir.Read, str] = {}
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
                    self.axes.tile(tile, self.bounds(tile), self.block(tile) if tile != self.row else None)
                )
                for tile in (row if entry.name == row.name else entry for entry in self.kernel.grid)
                if isinstance(tile, ir.Tile)
            ]

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

    def block(self, tile: ir.Tile) -> int:
        """How many indices a program covers: the rows of all its consumers."""
        return self.facts.lanes[tile.axis] * (self.consumers if tile.axis == self.row.axis else 1)
