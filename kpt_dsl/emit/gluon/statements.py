"""Statements of a consumer as Gluon text: assignments to tiles where they live, loads of vectors, and stores."""

from collections.abc import Mapping
from contextlib import ExitStack

from kpt_dsl import ir
from kpt_dsl.emit.gluon.layouts import Product, Slice
from kpt_dsl.emit.gluon.program import Program
from kpt_dsl.emit.gluon.shared import Tile
from kpt_dsl.emit.text import Writer


class Statements:
    """Writes statements of one module. ``words``: what Gluon calls things (``vocabulary``)."""

    def __init__(self, module: Program, words: Mapping[str, str]) -> None:
        self._module, self._words = module, words
        self._expressions, self._shared = module.expressions, module.shared

    def write(self, body: tuple[ir.Stmt, ...], out: Writer) -> None:
        """Write statements of one function, the loads inside them first: what another function loaded is not known here."""
        self._module.loads.clear()
        for stmt in body:
            self._statement(stmt, out)

    def _statement(self, stmt: ir.Stmt, out: Writer) -> None:
        self._loads(stmt, out)
        match stmt:
            case ir.Assign():
                out.line(f"{self._expressions.name(stmt.name)} = {self._expressions.at_home(stmt.value)}", stmt.loc)
            case ir.Store() if stmt in self._shared.staged:
                self._store(stmt, self._shared.staged[stmt], out)
            case ir.Store():
                home = self._expressions.home(stmt.value.type.shape)
                axis = ir.kept(stmt.index)[0]
                with self._expressions.wanting(home), self._expressions.vectors(home, axis):
                    self._module.memory.store(stmt, out)

    def _loads(self, stmt: ir.Stmt, out: Writer) -> None:
        """Write the loads of vectors and scalars inside a statement."""
        for top in ir.expressions(stmt):
            for e in ir.walk(top):
                if isinstance(e, ir.Load) and e not in self._module.loads and len(e.type.shape) < 2:
                    name = self._module.axes.names.of(("loaded", e), f"{e.tensor}_tile")
                    with ExitStack() as around:
                        if e.type.shape:
                            home = self._expressions.home(e.type.shape)
                            around.enter_context(self._expressions.wanting(home))
                            around.enter_context(self._expressions.vectors(home, e.type.shape[0]))
                        self._module.memory.load(e, out, stmt.loc, name)
                    self._module.loads[e] = name
                elif isinstance(e, ir.Load) and len(e.type.shape) > 1:
                    self._module.loads[e] = name = self._shared.taken(e)
                    self._clear(e, name, out)

    def _clear(self, e: ir.Load, name: str, out: Writer) -> None:
        """Zeros where a tile reaches beyond the bounds of its loop; beyond the tensor it has them."""
        home = self._expressions.home(e.type.shape)
        assert isinstance(home, Product)
        if cleared := [a for a in e.masked if not self._module.axes.natural(a)]:
            with ExitStack() as around:
                for i, axis in enumerate(e.type.shape):
                    around.enter_context(self._expressions.vectors(Slice(1 - i, home), axis))
                out.line(f"{name} = gl.where({self._module.memory.condition(cleared, e.type.shape)}, {name}, 0.0)", e.loc)

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
