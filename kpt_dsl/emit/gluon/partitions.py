"""The functions of a generated Gluon module: what the producer does, what each consumer does, and the work between products.

A consumer of chained products keeps two of them in flight: it issues the first product of the next step, then the second one
of this step, and works on the first's result while the second runs. The left side of the second stays in registers.
"""

from kpt_dsl import ir
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.emit.gluon.functions import Function, define
from kpt_dsl.emit.gluon.program import Program
from kpt_dsl.emit.gluon.shared import Ring, Tile
from kpt_dsl.emit.gluon.statements import Statements
from kpt_dsl.emit.gluon.walk import Walk
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Bounds
from kpt_dsl.passes.pipeline import Part, Step, operand
from kpt_dsl.passes.within import ends_within


class Partitions:
    """Writes the functions of one module."""

    def __init__(self, module: Program) -> None:
        self.module = module
        self.plan, self.axes, self.shared = module.plan, module.axes, module.shared
        self.expressions = module.expressions
        self.tile = self.plan.loop.tile
        self.walk = Walk(self.axes, self.tile, module.persistent)
        names = self.axes.names
        # Names of our own, which variables of the author give way to.
        self._turn, self._before, self._next, self._more = (names.new(w) for w in ("turn", "before", "next", "more"))
        self._last, self._running, self._left = names.new("last"), names.new("running"), names.new("left")
        # Consumers may have less to do than their program, whose last rows see more.
        trimmed = ends_within(self.plan.scalars, self.plan.loop, module.row.name)
        self._end = names.new(f"{self.tile.name}_stop") if trimmed else self.walk.end
        self.words = vocabulary.names(vocabulary.installed())
        self.statements = Statements(module, self.words)
        self._kinds: dict[str, Function] = {}

    def functions(self) -> list[Function]:
        """The work between products, what the producer does and what a consumer does."""
        if self.plan.masked.link is not None:
            clear = next((p for p in self.plan.parts if p.loop.part == "interior"), None)
            self._kinds["masked"] = self._between("masked", self.plan.masked, ragged=self._ragged)
            if clear is not None and clear.step != self.plan.masked:
                self._kinds["clear"] = self._between("clear", clear.step, ragged=False)
        if self.plan.foreign and self.shared.product is not None:
            (tile,) = self.shared.product.tiles
            body = self.statements.clear_slot(tile, "buffer", self.walk.beyond)
            self._kinds["cleared"] = self._function(f"{tile.name}_cleared", ("buffer",), body)
        self.producer = self._load_tiles()
        self.consumer = self._multiply()
        return [*self._kinds.values(), self.producer, self.consumer]

    @property
    def layouts(self) -> dict[str, str]:
        """Layouts that only the partitions know: name -> text."""
        dot = self.plan.masked.product.value
        assert isinstance(dot, ir.Dot)
        if self.plan.masked.link is None:
            return {}
        width = 32 // dot.a.type.dtype.bits
        parent = self.expressions.home(dot.type.shape)
        return {vocabulary.LEFT: f"gl.DotOperandLayout(operand_index=0, parent={parent}, k_width={width})"}

    @property
    def _ragged(self) -> bool:
        """Whether tiles of the loop may have lanes outside its bounds."""
        return len(self.plan.parts) > 1

    def _function(self, name: str, own: tuple[str, ...], body: Writer) -> Function:
        known = {
            *self.axes.constants,
            *vocabulary.RESERVED,
            *self.expressions.helpers,
            vocabulary.LEFT,
            *(f.name for f in self._kinds.values()),
        }
        known |= {str(p) for p in self.expressions.layouts}
        return Function(self.axes.names.of(("function", name), name), own, body, frozenset(known))

    # ------------------------------------------------------------------ the producer
    def _load_tiles(self) -> Function:
        out = Writer(depth=1)
        with self.walk.each_tile(out):
            if (held := self.shared.held) is not None:
                self._load_held(held, out)
            with self.walk.each_step(out, self.walk.begin, self.walk.end):
                out.line(f"{self._turn} = {self.walk.step} // SLOTS & 1")
                for ring in (self.shared.link, self.shared.product):
                    if ring is not None:
                        self._fill(ring, out)
        return self._function("load_tiles", (), out)

    def _load_held(self, held: Tile, out: Writer) -> None:
        """Load what each consumer holds; in a persistent program once it is done with what it held."""
        with out.block("for consumer in gl.static_range(CONSUMERS):"):
            buffer, phase = self.walk.held
            ready = f"{self.shared.held_ready}.index({buffer})"
            if self.walk.persistent:
                out.line(f"mbarrier.wait({self.shared.held_free}.index({buffer}), {phase} ^ 1)")
            out.line(f"mbarrier.expect({ready}, {held.descriptor}.block_type.nbytes)")
            self._load(held, ready, f"{held.name}.index({buffer})", out)

    def _fill(self, ring: Ring, out: Writer) -> None:
        """Load one slot of a ring, once all consumers are done with it."""
        ready = f"{ring.ready}.index({self.walk.slot})"
        out.line(f"mbarrier.wait({ring.free}.index({self.walk.slot}), {self._turn} ^ 1)")
        sizes = [f"{t.descriptor}.block_type.nbytes" + (" * CONSUMERS" if t.split else "") for t in ring.tiles]
        out.line(f"mbarrier.expect({ready}, {' + '.join(sizes)})")
        for tile in ring.tiles:
            if tile.split:
                with out.block("for consumer in gl.static_range(CONSUMERS):"):
                    self._load(tile, ready, f"{tile.name}.index({self.walk.slot} * CONSUMERS + consumer)", out)
            else:
                self._load(tile, ready, f"{tile.name}.index({self.walk.slot})", out)

    def _load(self, tile: Tile, ready: str, buffer: str, out: Writer) -> None:
        loc = tile.operand.load.loc if tile.operand else None
        corner = self.shared.corner(tile, "consumer")
        out.line(f"{self.words['load']}({tile.descriptor}, {corner}, {ready}, {buffer})", loc)

    # ------------------------------------------------------------------ a consumer
    def _multiply(self) -> Function:
        row = self.module.row
        out, body = Writer(depth=1), Writer(depth=2 if self.walk.persistent else 1)
        with self.module.tiles(row) as scopes:
            if self._end != self.walk.end:
                self.statements.limits(body)
                body.line(f"{self._end} = {self.module.steps_end(self.walk.begin, counted=True)}")
            self.statements.write(self.plan.setup, body)
            if self.plan.masked.link is not None:
                self._chained(body)
            else:
                self._lone(body)
            self.statements.write(self.plan.after, body)
            if self._end != self.walk.end:
                self._pass_over(body)
        define(self.axes.top, out)
        with self.walk.each_tile(out):
            out.line(f"{self.axes.start(row.name)} += consumer * {self.axes.lanes(row.axis)}")
            for scope in scopes:
                define(scope, out)
            out.paste(body)
        if self.shared.staged:
            out.line("tma.store_wait(0)")
        return self._function("multiply", ("consumer", *self.given), out)

    @property
    def given(self) -> tuple[str, ...]:
        """What the entry knows of its tile and each consumer of its own; a persistent program's consumers find their tiles."""
        return () if self.walk.persistent else (self.axes.start(self.module.row.name),)

    def _pass_over(self, out: Writer) -> None:
        """The steps that only others have to take: their tiles are free as soon as they are there."""
        begin, block = self.walk.begin, self.walk.block
        first = f"gl.cdiv({self._end}, {block}) * {block}"
        if self.plan.loop.at_start:
            first = f"{begin} + gl.cdiv({self._end} - {begin}, {block}) * {block}"
        with self.walk.each_step(out, first, self.walk.end):
            for ring in (self.shared.link, self.shared.product):
                if ring is not None:
                    phase = f"{self.walk.step} // SLOTS & 1"
                    out.line(f"mbarrier.wait({ring.ready}.index({self.walk.slot}), {phase})")
                    out.line(f"mbarrier.arrive({ring.free}.index({self.walk.slot}), count=1)")

    def _chained(self, out: Writer) -> None:
        """Two products a step, the first one issued a step ahead."""
        assert self.shared.held is not None
        buffer, phase = self.walk.held
        out.line(f"mbarrier.wait({self.shared.held_ready}.index({buffer}), {phase})")
        out.line(f"{self._held} = {self.shared.held.name}.index({buffer})")
        if self.module.overlap:
            self._overlapped(out)
        else:
            self._compact(out)

    def _first_link(self, out: Writer, pred: str = "") -> None:
        """The link of the first step, on its own."""
        link = self.shared.link
        assert link is not None
        slot, phase = self.walk.first
        out.line(f"mbarrier.wait({link.ready}.index({slot}), {phase}{pred})")
        self._issue_link(out, slot)
        self._take_beside(out, slot)
        out.line(f"{self._score} = warpgroup_mma_wait(0, deps=[{self._score}])")
        out.line(f"mbarrier.arrive({link.free}.index({slot}), count=1{pred})")

    def _take_beside(self, out: Writer, slot: str) -> None:
        """Bring what the work on the link's result reads beside it into registers, while the product runs: as that will lie."""
        for tile in self.shared.link.tiles if self.shared.link else ():
            if tile.operand in self.plan.beside:
                home = self.expressions.home(tile.operand.load.type.shape)
                buffer = self._buffer(tile, slot)
                out.line(f"{self.shared.taken(tile.operand.load)} = {buffer}.load({home})", tile.operand.load.loc)

    def _release_held(self, out: Writer) -> None:
        """The producer may load what another tile holds."""
        if self.walk.persistent:
            out.line(f"mbarrier.arrive({self.shared.held_free}.index({self.walk.held[0]}), count=1)")

    # Overlapped: the work of a step begins while the product of the step before it runs.
    def _overlapped(self, out: Writer) -> None:
        product, masked = self.shared.product, self.plan.masked
        assert product is not None
        out.line("# The first step: no product is under way yet.")
        out.line(f"{self.walk.start} = {self.walk.begin}")
        self._first_link(out)
        if "clear" in self._kinds:
            with out.block(f"if {self._starts_clear}:"):
                self._call(self._kinds["clear"], masked, out)
            with out.block("else:"):
                self._call(self._kinds["masked"], masked, out)
        else:
            self._call(self._kinds["masked"], masked, out)
        self._rescale(masked, out)
        for part in self.plan.parts:
            self._overlapped_part(part, out)
        self._release_held(out)
        out.line(f"{self._last} = {self.walk.count(f'{self._end} - 1')}")
        out.line(f"mbarrier.wait({product.ready}.index({self._last} % SLOTS), {self._last} // SLOTS & 1)")
        if self.plan.foreign:
            out.line(f"{self.walk.start} = {self.walk.begin} + {self._last} * {self.walk.block}")
            self._clear(f"{self._last} % SLOTS", out)
        right = self._right(product, f"{self._last} % SLOTS", masked.product)
        out.line(f"{self._sum} = warpgroup_mma({self._left}, {right}, {self._sum}, is_async=True)")
        out.line(f"{self._sum} = warpgroup_mma_wait(0, deps=[{self._sum}])")
        if self.walk.persistent or self._end != self.walk.end:
            out.line(f"mbarrier.arrive({product.free}.index({self._last} % SLOTS), count=1)")

    @property
    def _starts_clear(self) -> str:
        """Whether the first step is one that needs no mask, as text."""
        clear = next(p.loop for p in self.plan.parts if p.loop.part == "interior")
        low, high = self.expressions.text(clear.start), self.expressions.text(clear.stop)
        begins = "" if isinstance(clear.start, ir.Const) else f"({low} <= {self.walk.begin}) & "
        return f"{begins}({self.walk.begin} < {high})"

    def _overlapped_part(self, part: Part, out: Writer) -> None:
        link, product = self.shared.link, self.shared.product
        assert link is not None
        assert product is not None
        second = f"{self.walk.begin} + {self.walk.block}"
        begins = part.loop.part == "head" or isinstance(part.loop.start, ir.Const)
        low = second if begins else f"gl.maximum({self.expressions.text(part.loop.start)}, {second})"
        with self.walk.each_step(out, low, self._high(part), part.loop.loc):
            out.line(f"{self._before} = ({self.walk.step} - 1) % SLOTS")
            out.line(f"mbarrier.wait({link.ready}.index({self.walk.slot}), {self.walk.step} // SLOTS & 1)")
            self._issue_link(out, self.walk.slot)
            out.line(f"mbarrier.wait({product.ready}.index({self._before}), ({self.walk.step} - 1) // SLOTS & 1)")
            right = self._right(product, self._before, part.step.product)
            out.line(f"{self._running} = warpgroup_mma({self._left}, {right}, {self._sum}, is_async=True)")
            self._take_beside(out, self.walk.slot)
            out.line(f"{self._score} = warpgroup_mma_wait(1, deps=[{self._score}])")
            out.line(f"mbarrier.arrive({link.free}.index({self.walk.slot}), count=1)")
            self._call(self._function_of(part), part.step, out)
            out.line(f"{self._sum} = warpgroup_mma_wait(0, deps=[{self._running}])")
            out.line(f"mbarrier.arrive({product.free}.index({self._before}), count=1)")
            self._rescale(part.step, out)

    # Compact: products are waited for together, and the work of a step stands once in the code for each kind of step. Three
    # consumers hide each other's waits, and have neither the registers nor the instruction cache for more.
    def _compact(self, out: Writer) -> None:
        self._first_link(out, f", pred={self.walk.begin} < {self._end}")
        for part in self.plan.parts:
            self._compact_part(part, out)
        self._release_held(out)

    def _compact_part(self, part: Part, out: Writer) -> None:
        link, product = self.shared.link, self.shared.product
        assert link is not None
        assert product is not None
        low = self.walk.begin if part is self.plan.parts[0] else self.expressions.text(part.loop.start)
        with self.walk.each_step(out, low, self._high(part), part.loop.loc):
            out.line(f"{self._next} = ({self.walk.step} + 1) % SLOTS")
            out.line(f"{self._more} = {self.walk.start} + {self.walk.block} < {self._end}")
            if part.loop.part != "interior" and self.plan.foreign:
                out.line(f"mbarrier.wait({product.ready}.index({self.walk.slot}), {self.walk.step} // SLOTS & 1)")
                self._clear(self.walk.slot, out)
            self._call(self._function_of(part), part.step, out)
            self._rescale(part.step, out)
            ready = f"{link.ready}.index({self._next})"
            out.line(f"mbarrier.wait({ready}, ({self.walk.step} + 1) // SLOTS & 1, pred={self._more})")
            # Behind the last step there is no tile: what the slot holds is multiplied all the same, and not read.
            self._issue_link(out, self._next)
            out.line(f"mbarrier.wait({product.ready}.index({self.walk.slot}), {self.walk.step} // SLOTS & 1)")
            right = self._right(product, self.walk.slot, part.step.product)
            out.line(f"{self._sum} = warpgroup_mma({self._left}, {right}, {self._sum}, is_async=True)")
            self._take_beside(out, self._next)
            out.line(f"{self._score} = warpgroup_mma_wait(1, deps=[{self._score}])")
            out.line(f"mbarrier.arrive({link.free}.index({self._next}), count=1, pred={self._more})")
            out.line(f"{self._sum} = warpgroup_mma_wait(0, deps=[{self._sum}])")
            out.line(f"mbarrier.arrive({product.free}.index({self.walk.slot}), count=1)")

    def _high(self, part: Part) -> str:
        return self._end if part is self.plan.parts[-1] else self.expressions.text(part.loop.stop)

    def _function_of(self, part: Part) -> Function:
        clear = part.loop.part == "interior" and "clear" in self._kinds
        return self._kinds["clear" if clear else "masked"]

    def _lone(self, out: Writer) -> None:
        """One product a step: the next is issued before this one is waited for."""
        shared, product = self.shared, self.plan.masked.product
        assert shared.product is not None
        left, right = (t for t in shared.product.tiles)
        with self.walk.each_step(out, self.walk.begin, self._end, self.plan.loop.loc):
            out.line(f"mbarrier.wait({shared.product.ready}.index({self.walk.slot}), {self.walk.step} // SLOTS & 1)")
            a, b = (self._buffer(t, self.walk.slot) for t in (left, right))
            out.line(f"{self._sum} = warpgroup_mma({a}, {b}, {self._sum}, is_async=True)", product.loc)
            out.line(f"{self._sum} = warpgroup_mma_wait(1, deps=[{self._sum}])")
            before = f"{shared.product.free}.index(({self.walk.step} - 1) % SLOTS)"
            with out.block(f"if {self.walk.start} > {self.walk.begin}:"):
                out.line(f"mbarrier.arrive({before}, count=1)")
        out.line(f"{self._sum} = warpgroup_mma_wait(0, deps=[{self._sum}])")
        if self.walk.persistent or self._end != self.walk.end:
            last = f"{shared.product.free}.index(({self.walk.count(self._end + ' - 1')}) % SLOTS)"
            with out.block(f"if {self.walk.begin} < {self._end}:"):
                out.line(f"mbarrier.arrive({last}, count=1)")

    # ------------------------------------------------------------------ products
    @property
    def _score(self) -> str:
        assert self.plan.masked.link is not None
        return self.expressions.name(self.plan.masked.link.name)

    @property
    def _sum(self) -> str:
        return self.expressions.name(self.plan.masked.product.name)

    @property
    def _held(self) -> str:
        assert self.plan.held is not None
        return self.expressions.name(self.plan.held.name)

    def _issue_link(self, out: Writer, slot: str) -> None:
        link, ring = self.plan.masked.link, self.shared.link
        assert link is not None
        assert ring is not None
        right = self._right(ring, slot, link)
        home = self.expressions.home(link.value.type.shape)
        with self.expressions.wanting(home):
            zeros = self.expressions.filled(link.value.type.shape, "", "gl.float32")
        out.line(
            f"{self._score} = warpgroup_mma({self._held}, {right}, {zeros}, use_acc=False, is_async=True)", link.loc
        )

    def _right(self, ring: Ring, slot: str, product: ir.Assign) -> str:
        """The right side of a product, in its slot."""
        assert isinstance(product.value, ir.Dot)
        wanted = operand(product.value.b)
        loads = ((t, t.operand.load) for t in ring.tiles if t.operand)
        tile = next(t for t, load in loads if wanted and (load.tensor, load.index) == (wanted.load.tensor, wanted.load.index))
        return self._buffer(tile, slot)

    def _buffer(self, tile: Tile, slot: str) -> str:
        assert tile.operand is not None
        place = f"{slot} * CONSUMERS + consumer" if tile.split else slot
        return f"{tile.name}.index({place})" + (".permute((1, 0))" if tile.operand.transposed else "")

    def _rescale(self, step: Step, out: Writer) -> None:
        """What the next product adds to."""
        if isinstance(step.addend, ir.Var):
            return
        out.line(f"{self._sum} = {self.expressions.at_home(step.addend)}", step.product.loc)

    def _clear(self, slot: str, out: Writer) -> None:
        """Where the tile of a step reaches beyond the loop, what is another's leaves its slot."""
        if self.plan.foreign and self.shared.product is not None:
            (tile,), cleared = self.shared.product.tiles, self._kinds["cleared"]
            with out.block(f"if {self.walk.beyond} < {self.walk.start} + {self.walk.block}:"):
                out.line(f"{cleared.name}({', '.join(cleared.arguments(self._buffer(tile, slot)))})")

    # ------------------------------------------------------------------ the work between products
    def _between(self, name: str, step: Step, ragged: bool) -> Function:
        """A function of the link's result that gives what later work reads: the left operand first."""
        loop, row = self.plan.loop, self.module.row
        high = self.module.high
        low = None if not ragged or isinstance(loop.start, ir.Const) or loop.at_start else self.module.low
        natural = low is None and isinstance(loop.stop, ir.Size) and loop.stop.dim == self.tile.dim
        bounds = Bounds(low, high, ragged, ragged and self.module.facts.padded(self.tile.axis), natural)
        body, out = Writer(depth=1), Writer(depth=1)
        with self.module.tiles(row) as scopes, self.axes.tile(self.tile, bounds) as columns:
            self.statements.write(step.between, body)
            assert isinstance(step.product.value, ir.Dot)
            left = self.expressions.at_home(step.product.value.a)
            body.line(f"{self._left} = gl.convert_layout({left}, {vocabulary.LEFT})", step.product.loc)
        for scope in (*scopes, columns):
            define(scope, out)
        out.paste(body)
        out.line(f"return {', '.join(self._results(step))}")
        carried = (self.expressions.name(n) for n in loop.carried if n != step.product.name)
        beside = (self.shared.taken(o.load) for o in self.plan.beside)
        return self._function(f"{self._score}_{name}", (self._score, *carried, *beside), out)

    def _results(self, step: Step) -> list[str]:
        """The left operand, and the variables that the loop carries or the accumulator is scaled by."""
        made = [s.name for s in step.between if isinstance(s, ir.Assign)]
        read = {x.name for x in ir.walk(step.addend) if isinstance(x, ir.Var)}
        wanted = {*self.plan.loop.carried, *read}
        return [self._left, *(self.expressions.name(n) for n in dict.fromkeys(made) if n in wanted)]

    def _call(self, function: Function, step: Step, out: Writer) -> None:
        out.line(f"{', '.join(self._results(step))} = {function.name}({', '.join(function.parameters)})")
