"""What the functions of a generated Gluon module have in common: names, memory, and the bounds of the loop that they share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.emit.gluon.layouts import INSTRUCTION_BYTES, LaidOutAxes, LaidOutExpressions, Product
from kpt_dsl.emit.gluon.shared import SWIZZLES, Shared, layout_name
from kpt_dsl.emit.triton.axes import Scope
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
        self.low = self._bound(loop.start, "first")
        self.high = self.axes.extent(loop.tile.dim) if isinstance(loop.stop, ir.Size) else self._bound(loop.stop, "last")

    def _bound(self, bound: ir.Expr, end: str) -> str:
        """The name of one of the loop's bounds: its own, where it is a variable of a loop that is counted from its start."""
        loop = self.plan.loop
        if loop.at_start and isinstance(bound, ir.Var):
            return self.expressions.name(bound.name)
        return self.axes.names.new(f"{loop.tile.name}_{end}")

    @contextmanager
    def tiles(self, row: ir.Tile) -> Iterator[list[Scope]]:
        """The tiles of the grid in scope, with ``row`` as the one that consumers share out."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    self.axes.tile(tile, self.axes.to_the_end(tile), self.block(tile) if tile != self.row else None)
                )
                for tile in (row if entry.name == row.name else entry for entry in self.kernel.grid)
                if isinstance(tile, ir.Tile)
            ]

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
