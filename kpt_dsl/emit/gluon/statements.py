"""Statements of a consumer as Gluon text: assignments to tiles where they live, loads of vectors, and stores."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from kpt_dsl import ir
from kpt_dsl.emit.gluon.functions import define
from kpt_dsl.emit.gluon.layouts import Product, Slice
from kpt_dsl.emit.gluon.program import Program
from kpt_dsl.emit.gluon.shared import Tile
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Bounds


class Statements:
    """Writes statements of one module. ``words``: what Gluon calls things (``vocabulary``)."""

    def __init__(self, module: Program, words: Mapping[str, str]) -> None:
        self._module, self._words = module, words
        self._expressions, self._shared = module.expressions, module.shared
        self._passed: dict[ir.Read, str] = {}

    def write(self, body: tuple[ir.Stmt, ...], out: Writer) -> None:
        """Write statements of one function, the loads inside them first: what another function loaded is not known here."""
        self._module.loads.clear()
        self._module.loads |= self._passed
        for stmt in body:
            self._statement(stmt, out)

    def limits(self, out: Writer) -> None:
        """Write the scalars of the kernel, and from where to where its loop runs, for the rows that are in scope.

        What they load, for any rows, the entry passes on."""
        loop = self._module.plan.loop
        self.write(self._module.plan.scalars, out)
        self._passed |= self._module.loads
        for name, bound in ((self._module.low, loop.start), (self._module.high, loop.stop)):
            text = self._expressions.text(bound)
            if not isinstance(bound, ir.Const | ir.Size) and name != text:
                out.line(f"{name} = {text}", loop.loc)

    def _statement(self, stmt: ir.Stmt, out: Writer) -> None:
        self._loads(stmt, out)
        match stmt:
            case ir.Assign():
                out.line(f"{self._expressions.name(stmt.name)} = {self._expressions.at_home(stmt.value)}", stmt.loc)
            case ir.Store() if stmt in self._shared.staged:
                self._store(stmt, self._shared.staged[stmt], out)
            case ir.Store():
                with self._beside(stmt.value.type.shape):
                    self._module.memory.store(stmt, out)

    def _loads(self, stmt: ir.Stmt, out: Writer) -> None:
        """Write the loads of vectors and scalars inside a statement."""
        for top in ir.expressions(stmt):
            for e in ir.walk(top):
                if isinstance(e, ir.Load) and e not in self._module.loads and len(e.type.shape) < 2:
                    name = self._module.axes.names.of(("loaded", e), f"{e.tensor}_tile")
                    with ExitStack() as around:
                        if e.type.shape:
                            around.enter_context(self._beside(e.type.shape))
                        self._module.memory.load(e, out, stmt.loc, name)
                    self._module.loads[e] = name
                elif isinstance(e, ir.Load) and len(e.type.shape) > 1:
                    self._module.loads[e] = name = self._shared.taken(e)
                    self.clear(e, name, out)

    @contextmanager
    def _beside(self, shape: tuple[ir.Axis, ...]) -> Iterator[None]:
        """What has a shape is wanted where variables of it are, and vectors along its axes beside that."""
        home = self._expressions.home(shape)
        with self._expressions.wanting(home), ExitStack() as around:
            for i, axis in enumerate(shape):
                layout = Slice(1 - i, home) if isinstance(home, Product) else home
                around.enter_context(self._expressions.vectors(layout, axis))
            yield

    def clear(self, e: ir.Load, name: str, out: Writer) -> None:
        """Zeros where a tile reaches beyond the bounds of its loop; beyond the tensor it has them."""
        if cleared := [a for a in e.masked if not self._module.axes.natural(a)]:
            with self._beside(e.type.shape):
                out.line(f"{name} = gl.where({self._module.memory.condition(cleared, e.type.shape)}, {name}, 0.0)", e.loc)

    def clear_slot(self, tile: Tile, buffer: str, beyond: str) -> Writer:
        """What leaves zeros in a slot of the loop for elements from ``beyond`` on: every consumer writes the same."""
        assert tile.operand is not None
        load, loop, body, out = tile.operand.load, self._module.plan.loop, Writer(depth=1), Writer(depth=1)
        name, bounds = self._shared.taken(load), Bounds(None, beyond, ragged=True, beyond=True, natural=False)
        with self._module.axes.tile(loop.tile, bounds) as scope:
            body.line(f"{name} = {buffer}.load({self._expressions.home(load.type.shape)})", load.loc)
            self.clear(load, name, body)
            body.line(f"{buffer}.store({name})")
        body.line("fence_async_shared()")
        body.line(f"{self._words['barrier']}()")
        define(scope, out)
        out.paste(body)
        return out

    def _store(self, stmt: ir.Store, tile: Tile, out: Writer) -> None:
        """A tile through shared memory to its tensor; what lies beyond the tensor is not written."""
        dtype = self._module.kernel.tensor(stmt.tensor).dtype
        value = ir.Cast(stmt.value, type=ir.Type(dtype, stmt.value.type.shape), loc=stmt.loc)
        home = self._expressions.home(value.type.shape)
        assert isinstance(home, Product)
        if self._module.persistent:
            out.line("tma.store_wait(0)")
            out.line(f"{self._words['barrier']}()")
        out.line(f"{tile.name}.index(consumer).store({self._expressions.laid_out(value, home)})", stmt.loc)
        out.line("fence_async_shared()")
        out.line(f"{self._words['barrier']}()")
        out.line(f"{self._words['store']}({tile.descriptor}, {self._shared.corner(tile)}, {tile.name}.index(consumer))")
