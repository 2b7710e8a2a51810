"""The kernel function of a Pallas module: what each step of the grid does, and the bounds of loops that leave tiles out.

Straight-line statements run on the step they belong to, a loop's body on its phase; a body whose masks are needed at edges
only stands twice. Which blocks there are and what is kept in scratch was decided before (``plan``, ``blocks``).
"""

import re

from kpt_dsl import ir
from kpt_dsl.emit.pallas.blocks import Blocks
from kpt_dsl.emit.pallas.counts import in_steps, programs, visits
from kpt_dsl.emit.pallas.expressions import JAX_DTYPES, Text
from kpt_dsl.emit.pallas.plan import Phase, Plan, Segment, read_by
from kpt_dsl.emit.text import Writer
from kpt_dsl.passes.split import Interior, interior


class KernelText:
    """The text of one kernel: ``function`` and, in ``bounds``, the functions that it and the index maps call.

    ``calls`` says how the bounds of each bounded loop are called, ``visits`` how often each conditional part runs, in order.
    """

    def __init__(self, plan: Plan, products: frozenset[str]) -> None:
        self.plan = plan
        self.kernel = plan.kernel
        self.blocks = Blocks(plan)
        loops = {g.name for g in self.kernel.grid} | {p.name for p in plan.phases}
        self.numbers = dict.fromkeys(plan.tiles, "0") | {name: name for name in loops}
        self.step = plan.step(self.numbers)
        self.axes = [self.numbers[g.name] for g in self.kernel.grid] + [self.step] * bool(plan.steps)
        scalars = [t.name for t in self.blocks.scalars] + [s.name for s in self.kernel.scalars]
        self.prefetched = [f"{name}_ref" for name in scalars]
        self.text = Text(plan, self.numbers, self._variable, self.blocks.of, products)
        self._local: set[str] = set()
        self.calls: dict[str, str] = {}
        self.bounds: list[str] = []
        self.visits: list[int] = []
        self._add_bounds()
        self.function = self._function()

    def _variable(self, node: ir.Var) -> str:
        kept = node.name in self.plan.kept and node.name not in self._local
        return f"{node.name}_scratch[...]" if kept else node.name

    def _function(self) -> str:
        refs = [*self.prefetched, *(b.name for b in self.blocks.read)]
        refs += [f"{b.tensor.name}_kept_ref" for b in self.blocks.kept]
        refs += [b.name for b in self.blocks.written] + [f"{name}_scratch" for name in self.plan.kept]
        body = self._body().rstrip()
        header = Writer()
        header.call(f"def {self.kernel.name}_kernel(", refs, tail="):")
        return f"{header.text()}{self._head(body)}{body}" if body else f"{header.text()}    pass"

    def _head(self, body: str) -> str:
        """Program ids, tile numbers, and the scalars that the body uses."""
        used = words(body)
        lines = self._scalars(used)
        for phase in (p for p in self.plan.phases if p.bounded):
            tile = phase.name
            if {f"{tile}_start", f"{tile}_stop"} & used:
                used |= words(self.calls[tile])
                lines.insert(0, f"{tile}_start, {tile}_stop = {self.calls[tile]}")
        if len(self.plan.phases) > 1:
            for phase in self.plan.phases:
                if (number := self.numbers[phase.name]) in used:
                    used.add("step")
                    lines.insert(0, f"{number} = step" + (f" - {phase.first}" if phase.first else ""))
        lines = [f"{name} = pl.program_id({i})" for i, name in enumerate(self.axes) if name in used] + lines
        return "".join(f"    {line}\n" for line in lines)

    def _body(self) -> str:
        out = Writer()
        with out.indented():
            for segment, live in zip(self.plan.segments, self.plan.live, strict=True):
                live &= self.plan.kept.keys()
                if segment.phase:
                    loop = self._loop if self.plan.unroll == 1 else self._unrolled
                    loop(out, segment.phase, _alive(segment.body, live), live)
                elif body := _alive(segment.body, live):
                    at = [f"{self.step} == {segment.step}"] if self.plan.steps else []
                    self._guarded(out, at, "finish" if segment.step else "begin", body, live, programs(self.plan))
        return out.text()

    def _loop(self, out: Writer, phase: Phase, body: tuple[ir.Stmt, ...], live: frozenset[str]) -> None:
        over = phase.loop.over
        number = self.numbers[over.name]
        start, next_one = number, f"{number} + 1"
        if isinstance(over, ir.Tile):
            start, next_one = f"{number} * {over.block}", f"({next_one}) * {over.block}"
        during = [f"{self.step} >= {phase.first}"] if phase.first else []
        during += [f"{self.step} <= {phase.last}"] if phase.last + 1 < self.plan.steps else []
        visited = _visited(phase, start, next_one)
        visits_all = visits(self.plan, phase, phase.loop.start, phase.loop.stop)
        clear = interior(self.kernel, phase.loop) if isinstance(over, ir.Tile) else None
        visits_clear = visits(self.plan, phase, clear.start, clear.stop) if clear else 0
        if clear is None or not visits_clear:
            self._guarded(out, during + visited, f"visit_{over.name}", body, live, visits_all)
            return
        self._clear(out, over.name, clear, start, start)
        self._guarded(out, [*during, "clear"], f"interior_{over.name}", _alive(clear.body, live), live, visits_clear)
        self._guarded(out, [*during, *visited, "~clear"], f"edge_{over.name}", body, live, visits_all - visits_clear)

    def _clear(self, out: Writer, tile: str, clear: Interior, first: str, last: str) -> None:
        """Whether tiles need no mask, the ``first`` and the ``last`` of which begin there."""
        ends = {} if clear.start == ir.scalar(0) else {f"{tile}_clear_start": clear.start}
        ends[f"{tile}_clear_stop"] = clear.stop
        out.line()
        for end, value in ends.items():
            _statement(out, f"{end} = {self.text.expr(value)}", None)
        inside = [f"{first} >= {end}" if end.endswith("start") else f"{last} < {end}" for end in ends]
        out.line(f"clear = {_all(inside)}")

    def _unrolled(self, out: Writer, phase: Phase, body: tuple[ir.Stmt, ...], live: frozenset[str]) -> None:
        """The only loop, of which each step goes through several tiles: one run of all where they need no masks, so that the
        products of one are made during the other work of another; elsewhere each by itself."""
        tile, several = phase.loop.tile, self.plan.unroll
        clear = interior(self.kernel, phase.loop)
        steps, others = in_steps(self.plan, phase, (clear.start, clear.stop) if clear else (ir.scalar(0), ir.scalar(0)))
        if not phase.bounded and not (clear and steps):
            self._run(out, tile.name, body, live)
            return
        conditions = _visited(phase, f"{tile.name} * {tile.block}", f"({tile.name} + 1) * {tile.block}")
        if clear and steps:
            first = f"step * {several}"
            self._clear(out, tile.name, clear, f"{first} * {tile.block}", f"({first} + {several - 1}) * {tile.block}")
            self.visits.append(steps)
            with out.block(f"\n@pl.when(clear)\ndef interior_{tile.name}():"):
                self._run(out, tile.name, _alive(clear.body, live), live)
            conditions.append("~clear")
        with out.block(f"\nfor part in range({several}):"):
            out.line(f"{tile.name} = step * {several} + part")
            for count in others:
                self.visits.append(count)
            with out.block(f"\n@pl.when({_all(conditions)})\ndef edge_{tile.name}():"):
                self._statements(out, body, live)

    def _run(self, out: Writer, tile: str, body: tuple[ir.Stmt, ...], live: frozenset[str]) -> None:
        """The tiles of a step, one behind the other, and before them what is the same for all."""
        self._statements(out, tuple(self._recomputed(body)), frozenset())
        with out.block(f"for part in range({self.plan.unroll}):"):
            inner = Writer(out.depth)
            self._statements(inner, body, live, again=False)
            if tile in words(inner.text()):
                out.line(f"{tile} = step * {self.plan.unroll} + part")
            out.paste(inner)

    def _guarded(
        self,
        out: Writer,
        conditions: list[str],
        name: str,
        body: tuple[ir.Stmt, ...],
        live: frozenset[str],
        visits: int,
    ) -> None:
        """Statements that run when all conditions hold, ``visits`` times in all."""
        if not conditions:
            self._statements(out, body, live)
            return
        self.visits.append(visits)
        with out.block(f"\n@pl.when({_all(conditions)})\ndef {name}():"):
            self._statements(out, body, live)

    def _statements(self, out: Writer, body: tuple[ir.Stmt, ...], live: frozenset[str], again: bool = True) -> None:
        """A segment's statements, behind what they need that is computed ``again``. A kept variable is read from its scratch
        until it is assigned; its last value is written back: at once where nothing here reads it, else at the end."""
        self._local = set()
        self.text.wide = {name for name, kind in self.plan.kept.items() if self.plan.wide(kind)}
        body = (*self._recomputed(body), *body) if again else body
        lines: list[tuple[str, ir.Loc | None]] = []
        late: list[str] = []
        self.text.masks.clear()
        for i, stmt in enumerate(body):
            rest = body[i + 1 :]
            match stmt:
                case ir.Assign(name, value) if value.type.shape or name not in self.plan.definitions:
                    final = not any(isinstance(s, ir.Assign) and s.name == name for s in rest)
                    stored = final and name in self.plan.kept and name in live
                    if stored and not any(name in read_by(s) for s in rest):
                        lines.append((f"{name}_scratch[...] = {self._kept(value)}", stmt.loc))
                        continue
                    side = self.text.own_side(value)
                    lines.append((f"{name} = {self.text.expr(value, side=side)}", stmt.loc))
                    self._local.add(name)
                    (self.text.wide.add if side == "wide" else self.text.wide.discard)(name)
                    if stored:
                        late.append(f"{name}_scratch[...] = {self._kept(ir.Var(name, type=value.type))}")
                case ir.Store(tensor, value=value):
                    block, place = self.blocks.output(tensor), self.blocks.stored(stmt)
                    side = self.plan.stored(block.axes[0]) if len(block.axes) == 1 else None
                    lines.append((f"{place} = {_tile(self.text.turned(value, side), value)}", stmt.loc))
        for name, condition in self.text.masks.items():
            out.line(f"{name} = {condition}")
        for line, loc in [*lines, *((text, None) for text in late)]:
            _statement(out, line, loc)

    def _kept(self, value: ir.Expr) -> str:
        """The text of a value for the scratch of a variable."""
        if self.plan.wide(value.type):
            return self.text.filling(value)
        return _tile(self.text.expr(value, side=self.text.own_side(value)), value)

    def _recomputed(self, body: tuple[ir.Stmt, ...]) -> list[ir.Assign]:
        """Tiles that are the same all through a program and that these statements read, computed anew."""
        needed = set(Segment(body, 0).exposed)
        found: list[ir.Assign] = []
        for name, value in reversed(self.plan.definitions.items()):
            if value.type.shape and name in needed:
                found.insert(0, ir.Assign(name, value, loc=value.loc))
                needed |= read_by(found[0])
        return found

    # -------------------------------------------------------------- bounds and index maps
    def _scalars(self, used: set[str]) -> list[str]:
        """Lines that compute the scalars among the words of a text; their own words join ``used``."""
        lines: list[str] = []
        for name, value in reversed(self.plan.definitions.items()):
            if not value.type.shape and name in used:
                text = self.text.expr(value)
                used |= words(text)
                lines.insert(0, f"{name} = {text}")
        return lines

    def _add_bounds(self) -> None:
        """Functions that give the bounds of loops that may leave tiles out, and how each is called."""
        for phase in (p for p in self.plan.phases if p.bounded):
            over = phase.loop.over
            result = f"return {self.text.expr(phase.loop.start)}, {self.text.expr(phase.loop.stop)}"
            used = words(result)
            lines = [*self._scalars(used), result]
            arguments = [n for n in self.axes if n in used] + (
                [] if used.isdisjoint(self.prefetched) else self.prefetched
            )
            call = f"{over.name}_bounds({', '.join(arguments)})"
            about = f'"""The indices [start, stop) of {over.dim} that a program visits."""'
            self.bounds.append("\n    ".join([f"def {call}:", about, *lines]))
            self.calls[over.name] = call


def _visited(phase: Phase, first: str, behind: str) -> list[str]:
    """The conditions under which a bounded loop visits the indices from ``first`` on, up to those ``behind``."""
    name = phase.name
    if not phase.bounded:
        return []
    if phase.loop.start == ir.scalar(0):
        return [f"{first} < {name}_stop"]
    return [f"jnp.maximum({first}, {name}_start) < jnp.minimum({behind}, {name}_stop)"]


def _tile(text: str, value: ir.Expr) -> str:
    """A value as something that fills a ref: a scalar becomes a (1, 1) tile."""
    return text if value.type.shape else f"jnp.full((1, 1), {text}, {JAX_DTYPES[value.type.dtype.name]})"


def _alive(body: tuple[ir.Stmt, ...], live: frozenset[str]) -> tuple[ir.Stmt, ...]:
    """Statements without assignments that nothing reads, ``live`` being read behind them."""
    needed, found = set(live), list[ir.Stmt]()
    for stmt in reversed(body):
        if isinstance(stmt, ir.Assign):
            if stmt.name not in needed:
                continue
            needed.discard(stmt.name)
        needed |= read_by(stmt)
        found.insert(0, stmt)
    return tuple(found)


def _all(conditions: list[str]) -> str:
    """A conjunction of conditions."""
    if len(conditions) == 1:
        return conditions[0]
    return " & ".join(c if c.isidentifier() or c[0] == "~" else f"({c})" for c in conditions)


def _statement(out: Writer, text: str, loc: ir.Loc | None) -> None:
    """Write a statement; one that is too long has its longest list of arguments one a line."""
    first = last = depth = start = 0
    ends: list[int] = []
    commas: list[int] = []
    for i, character in enumerate(text):
        if character in "([":
            depth += 1
            if depth == 1:
                start, commas = i + 1, []
        elif character in ")]":
            depth -= 1
            if depth == 0 and commas and i - start > last - first:
                first, last, ends = start, i, [*commas, i]
        elif character == "," and depth == 1:
            commas.append(i)
    if ends:
        starts = [first, *(end + 1 for end in ends)]
        out.call(text[:first], [text[a:b].strip() for a, b in zip(starts, ends, strict=False)], loc, text[last:])
    else:
        out.line(text, loc)


def words(text: str) -> set[str]:
    """The names in a text, comments apart."""
    return set(re.findall(r"\w+", re.sub(r"#.*", "", text)))
