"""From a kernel's tile IR to a Pallas module for TPUs: a function that takes JAX arrays and returns the outputs.

Parallel loops are the leading axes of the grid, sequential loops its last; blocks are fetched by Pallas's own pipeline, one step
ahead. Bodies whose masks are needed at edges only are written twice. Float16, which TPUs do not have, crosses the boundary of
the kernel as float32: slower, but each result is rounded once, as on other devices.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kpt_dsl import ir
from kpt_dsl.emit import Source
from kpt_dsl.emit.pallas_blocks import Block, Blocks
from kpt_dsl.emit.pallas_counts import moved_bytes, programs, visits
from kpt_dsl.emit.pallas_plan import Phase, Plan, Segment, Side, plan, read_by, settled, unrolled
from kpt_dsl.emit.pallas_text import HELPERS, JAX_DTYPES, Text
from kpt_dsl.emit.text import Writer
from kpt_dsl.errors import ConfigError
from kpt_dsl.passes.padding import guard, whole
from kpt_dsl.passes.split import interior

if TYPE_CHECKING:
    from kpt_dsl.problem import Problem
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

_IMPORTS = """\
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu"""

_RESERVED = {"jax", "jnp", "lax", "pl", "pltpu", "step", "visited", "clear", "interpret", *HELPERS}


@dataclass(frozen=True)
class Array:
    """An argument or a result of a generated function."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Abi:
    """How a generated function is called: ``function(*inputs, *scalars)`` gives the outputs, a tuple where there are several.

    For estimates: ``steps`` is how often the kernel's body runs, ``visits`` how often each of the parts in it that run under a
    condition, in their order, and ``moved_bytes`` what the pipeline copies between HBM and VMEM.
    """

    inputs: tuple[Array, ...]
    scalars: tuple[Array, ...]
    outputs: tuple[Array, ...]
    steps: int
    visits: tuple[int, ...]
    moved_bytes: int


def emit(problem: "Problem", target: "Target", config: "Config") -> Source:
    """The Pallas source of a problem for a TPU target.

    Raises ConfigError for block sizes that no TPU takes, TargetError for a loop inside a loop and for indices and loop bounds that
    depend on what a loop computes.
    """
    return emit_kernel(problem.lower(config), dict(problem.dims), config, target.vmem_bytes, target.dtypes)


def emit_kernel(
    kernel: ir.Kernel, dims: Mapping[str, int], config: Mapping[str, Any], vmem_bytes: int, products: frozenset[str]
) -> Source:
    """The same from IR and extents; ``vmem_bytes`` is what a kernel may use, ``products`` the dtypes whose products its compiler takes."""
    tiles = [t for t in kernel.grid if isinstance(t, ir.Tile)]
    tiles += [s.tile for s in ir.statements(kernel.body) if isinstance(s, ir.For)]
    if empty := [d for t in kernel.tensors for d in t.dims if not dims[d]]:
        raise ConfigError(f"{kernel.name}: dim {empty[0]} is empty; a Pallas kernel needs an element of each dim")
    lanes = {t.dim: min(_block(t, config), dims[t.dim]) for t in tiles}
    body = unrolled(settled(kernel.body, dims), lambda loop: whole(loop) and lanes[loop.tile.dim] == dims[loop.tile.dim])
    guarded = guard(replace(kernel, body=body), lambda axis: axis.tile is not None and dims[axis.dim] % lanes[axis.dim] != 0)
    return _Emitter(plan(guarded, dims, lanes, {t.name: t for t in tiles}), vmem_bytes, products).source()


def _block(tile: ir.Tile, config: Mapping[str, Any]) -> int:
    size = config.get(tile.block)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"{tile.block} is {size!r}; it must be a positive integer, the length of tiles of {tile.dim}")
    return size


class _Emitter:
    """State of one emission: the plan, its blocks, and the text so far."""

    def __init__(self, plan: Plan, vmem_bytes: int, products: frozenset[str]) -> None:
        self.plan = plan
        self.kernel = plan.kernel
        self.vmem_bytes = vmem_bytes
        self.blocks = Blocks(plan)
        tensors = [t.name for t in self.kernel.tensors] + [s.name for s in self.kernel.scalars]
        self.taken = _RESERVED | plan.dims.keys() | {t.block for t in plan.tiles.values()} | {f"{t}_ref" for t in tensors}
        loops = {g.name for g in self.kernel.grid} | {p.loop.tile.name for p in plan.phases}
        self.numbers = dict.fromkeys(plan.tiles, "0") | {name: self.name(name) for name in loops}
        self.step = self.numbers.get(plan.step, plan.step)
        self.local: set[str] = set()
        self.calls: dict[str, str] = {}
        self.bounds: list[str] = []
        self.visits: list[int] = []
        self.text = Text(plan, self.numbers, self.variable, self.blocks.of, products)
        self.prefetched = [f"{t.name}_ref" for t in self.blocks.scalars] + [f"{s.name}_ref" for s in self.kernel.scalars]
        self.grid_names = [self.name(g.name) for g in self.kernel.grid]

    def name(self, name: str) -> str:
        """The Python name of a variable or argument: its own, unless this text uses that for something else."""
        return f"{name}_" if name in self.taken else name

    def variable(self, node: ir.Var) -> str:
        kept = node.name in self.plan.kept and node.name not in self.local
        return f"{node.name}_scratch[...]" if kept else self.name(node.name)

    # -------------------------------------------------------------- the module
    def source(self) -> Source:
        kernel = self.kernel
        self._bounds()
        body = self._body()
        refs = [*self.prefetched, *(b.name for b in self.blocks.inputs.values())]
        refs += [f"{t.name}_ref" for t in kernel.tensors if t.role == "out"] + [f"{name}_scratch" for name in self.plan.kept]
        inner = f"def {kernel.name}_kernel({', '.join(refs)}):\n{self._head(body)}{body.rstrip()}"
        code = "\n\n\n".join([*self.bounds, inner, self._host()])
        helpers = [text for name, text in HELPERS.items() if re.search(rf"\b{name}\(", code)]
        used = _words(code)
        constants = [f"{d} = {n}" for d, n in self.plan.dims.items() if d in used]
        constants += [f"block_{d} = {n}" for d, n in self.plan.lanes.items() if f"block_{d}" in used]
        title = f'"""{kernel.name} for TPUs, at one shape: a function of JAX arrays."""'
        head = "\n\n".join([title, _IMPORTS, "\n".join(constants)])
        return Source("pallas", self.name(kernel.name), "\n\n\n".join([head, *helpers, code]) + "\n", self._abi())

    def _abi(self) -> Abi:
        def arrays(role: str) -> tuple[Array, ...]:
            return tuple(
                Array(t.name, tuple(self.plan.dims[d] for d in t.dims), t.dtype.name)
                for t in self.kernel.tensors
                if t.role == role
            )

        return Abi(
            arrays("in"),
            tuple(Array(s.name, (), s.dtype.name) for s in self.kernel.scalars),
            arrays("out"),
            programs(self.plan) * max(1, self.plan.steps),
            tuple(self.visits),
            moved_bytes(self.plan, self.blocks),
        )

    # -------------------------------------------------------------- the kernel
    def _head(self, body: str) -> str:
        """Program ids, tile numbers, and the scalars that the body uses."""
        used = _words(body)
        lines = self._scalars(used)
        for phase in (p for p in self.plan.phases if p.bounded):
            tile = phase.loop.tile.name
            if {f"{tile}_start", f"{tile}_stop"} & used:
                used |= _words(self.calls[tile])
                lines.insert(0, f"{tile}_start, {tile}_stop = {self.calls[tile]}")
        if len(self.plan.phases) > 1:
            for phase in self.plan.phases:
                if (number := self.numbers[phase.loop.tile.name]) in used:
                    used.add("step")
                    lines.insert(0, f"{number} = step" + (f" - {phase.first}" if phase.first else ""))
        axes = [*self.grid_names, *([self.step] if self.plan.steps else [])]
        lines = [f"{name} = pl.program_id({i})" for i, name in enumerate(axes) if name in used] + lines
        return "".join(f"    {line}\n" for line in lines)

    def _body(self) -> str:
        out = Writer()
        with out.indented():
            for segment, live in zip(self.plan.segments, self.plan.live, strict=True):
                live &= self.plan.kept.keys()
                if segment.phase:
                    self._loop(out, segment.phase, _alive(segment.body, live), live)
                elif body := _alive(segment.body, live):
                    at = [f"{self.step} == {segment.step}"] if self.plan.steps else []
                    self._guarded(out, at, "finish" if segment.step else "begin", body, live, programs(self.plan))
        return out.text()

    def _loop(self, out: Writer, phase: Phase, body: tuple[ir.Stmt, ...], live: frozenset[str]) -> None:
        step, number = self.step, self.numbers[phase.loop.tile.name]
        tile, start = phase.loop.tile, f"{self.numbers[phase.loop.tile.name]} * {phase.loop.tile.block}"
        during = [f"{step} >= {phase.first}"] if phase.first else []
        during += [f"{step} <= {phase.last}"] if phase.last + 1 < self.plan.steps else []
        visited = []
        if phase.bounded and phase.loop.start == ir.scalar(0):
            visited = [f"{start} < {tile.name}_stop"]
        elif phase.bounded:
            visited = [f"jnp.maximum({start}, {tile.name}_start) < jnp.minimum(({number} + 1) * {tile.block}, {tile.name}_stop)"]
        visits_all = visits(self.plan, phase, phase.loop.start, phase.loop.stop)
        clear = interior(self.kernel, phase.loop)
        visits_clear = visits(self.plan, phase, clear.start, clear.stop) if clear else 0
        if clear is None or not visits_clear:
            self._guarded(out, during + visited, f"visit_{tile.name}", body, live, visits_all)
            return
        inside = [f"{start} >= {self.text.expr(clear.start)}"] if clear.head else []
        inside.append(f"{start} < {self.text.expr(clear.stop)}")
        out.line(f"\nclear = {_all(inside)}")
        self._guarded(out, [*during, "clear"], f"interior_{tile.name}", _alive(clear.body, live), live, visits_clear)
        self._guarded(out, [*during, *visited, "~clear"], f"edge_{tile.name}", body, live, visits_all - visits_clear)

    def _guarded(
        self, out: Writer, conditions: list[str], name: str, body: tuple[ir.Stmt, ...], live: frozenset[str], visits: int
    ) -> None:
        """Statements that run when all conditions hold, ``visits`` times in all."""
        if not conditions:
            self._statements(out, body, live)
            return
        self.visits.append(visits)
        with out.block(f"\n@pl.when({_all(conditions)})\ndef {name}():"):
            self._statements(out, body, live)

    def _statements(self, out: Writer, body: tuple[ir.Stmt, ...], live: frozenset[str]) -> None:
        """A segment's statements. A kept variable is read from its scratch until it is assigned; its last value is written
        back: at once where nothing here reads it, else at the end."""
        self.local = set()
        body = (*self._recomputed(body), *body)
        lines: list[tuple[str, ir.Loc | None]] = []
        late: list[str] = []
        self.text.masks.clear()
        for i, stmt in enumerate(body):
            rest = body[i + 1 :]
            match stmt:
                case ir.Assign(name, value) if value.type.shape or name not in self.plan.definitions:
                    text = self.text.expr(value, side=self.text.own_side(value))
                    final = not any(isinstance(s, ir.Assign) and s.name == name for s in rest)
                    stored = final and name in self.plan.kept and name in live
                    if stored and not any(name in read_by(s) for s in rest):
                        lines.append((f"{name}_scratch[...] = {_tile(text, value)}", stmt.loc))
                        continue
                    lines.append((f"{self.name(name)} = {text}", stmt.loc))
                    self.local.add(name)
                    if stored:
                        late.append(f"{name}_scratch[...] = {_tile(self.name(name), value)}")
                case ir.Store(tensor, _, value):
                    block = self.blocks.outputs[tensor]
                    side: Side | None = None
                    if len(block.axes) == 1:
                        side = "column" if self.blocks.column(block) else "row"
                    lines.append((f"{block.name}[...] = {_tile(self.text.expr(value, side=side), value)}", stmt.loc))
        for name, condition in self.text.masks.items():
            out.line(f"{name} = {condition}")
        for line, loc in [*lines, *((text, None) for text in late)]:
            out.line(line, loc)

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
            if not value.type.shape and self.name(name) in used:
                text = self.text.expr(value)
                used |= _words(text)
                lines.insert(0, f"{self.name(name)} = {text}")
        return lines

    def _bounds(self) -> None:
        """Functions that give the bounds of loops that may leave tiles out, and how each is called."""
        for phase in (p for p in self.plan.phases if p.bounded):
            tile = phase.loop.tile
            result = f"return {self.text.expr(phase.loop.start)}, {self.text.expr(phase.loop.stop)}"
            used = _words(result)
            lines = [*self._scalars(used), result]
            call = f"{tile.name}_bounds({', '.join(n for n in (*self.grid_names, *self.prefetched) if n in used)})"
            about = f'"""The indices [start, stop) of {tile.dim} that a program visits."""'
            self.bounds.append("\n    ".join([f"def {call}:", about, *lines]))
            self.calls[tile.name] = call

    def _spec(self, block: Block) -> str:
        place = self.blocks.place(block, self.text, self.calls)
        names = [*self.grid_names, *([self.step] if self.plan.steps else [])]
        if self.prefetched:
            names += self.prefetched if _words(place) & set(self.prefetched) else ["*_"]
        return f"pl.BlockSpec({self.blocks.shape(block, self.text)}, lambda {', '.join(names)}: {place})"

    # -------------------------------------------------------------- the function around it
    def _host(self) -> str:
        kernel, out = self.kernel, Writer()
        inputs = [t for t in kernel.tensors if t.role == "in"]
        outputs = [self.blocks.outputs[t.name] for t in kernel.tensors if t.role == "out"]
        parameters = [self.name(a.name) for a in (*inputs, *kernel.scalars)]
        arrays = [f"{self.name(t.name)}.astype({_SCALAR[t.dtype.kind]})" for t in self.blocks.scalars]
        arrays += [f"jnp.asarray({self.name(s.name)}, {JAX_DTYPES[s.dtype.name]}).reshape(1)" for s in kernel.scalars]
        arrays += [self.blocks.array(b, self.name(b.tensor.name)) for b in self.blocks.inputs.values()]
        grid = [g.dim if isinstance(g, ir.GridIndex) else f"pl.cdiv({g.dim}, {g.block})" for g in kernel.grid]
        semantics = ['"parallel"'] * len(grid)
        if self.plan.steps:
            grid.append(str(self.plan.steps))
            semantics.append('"arbitrary"')
        results = [self.name(b.tensor.name) for b in outputs]
        with out.block(f"def {self.name(kernel.name)}({', '.join([*parameters, 'interpret=False'])}):"):
            shapes = [f"{t.name} ({', '.join(t.dims)}) {t.dtype}" for t in kernel.tensors if t.role == "out"]
            out.line(f'"""Gives {", ".join(shapes)}."""')
            with out.block(f"{_tuple(results)} = pl.pallas_call("):
                out.line(f"{kernel.name}_kernel,")
                with out.block("grid_spec=pltpu.PrefetchScalarGridSpec("):
                    out.line(f"num_scalar_prefetch={len(self.prefetched)},")
                    out.line(f"grid={_tuple(grid)},")
                    for name, blocks in (("in_specs", self.blocks.inputs.values()), ("out_specs", outputs)):
                        with out.block(f"{name}=["):
                            for block in blocks:
                                out.line(f"{self._spec(block)},  # {block.tensor.name}")
                        out.line("],")
                    if self.plan.kept:
                        with out.block("scratch_shapes=["):
                            for name, kind in self.plan.kept.items():
                                out.line(f"pltpu.VMEM({self.text.shape(kind)}, {JAX_DTYPES[kind.dtype.name]}),  # {name}")
                        out.line("],")
                out.line("),")
                out.line(f"out_shape=[{', '.join(self.blocks.out_shape(b) for b in outputs)}],")
                with out.block("compiler_params=pltpu.CompilerParams("):
                    out.line(f"dimension_semantics={_tuple(semantics)},")
                    out.line(f"vmem_limit_bytes={self.vmem_bytes},")
                out.line("),")
                out.line("interpret=interpret,")
                out.line(f'name="{kernel.name}",')
            with out.block(")("):
                for array in arrays:
                    out.line(f"{array},")
            out.line(")")
            restored = [self.blocks.restored(b, name) for b, name in zip(outputs, results, strict=True)]
            out.line(f"return {', '.join(restored)}")
        return out.text().rstrip()


_SCALAR = {"float": "jnp.float32", "int": "jnp.int32", "bool": "jnp.int32"}


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
    return conditions[0] if len(conditions) == 1 else " & ".join(c if c.isidentifier() or c[0] == "~" else f"({c})" for c in conditions)


def _tuple(entries: list[str]) -> str:
    return f"({', '.join(entries)}{',' if len(entries) == 1 else ''})"


def _words(text: str) -> set[str]:
    """The names in a text, comments apart."""
    return set(re.findall(r"\w+", re.sub(r"#.*", "", text)))
