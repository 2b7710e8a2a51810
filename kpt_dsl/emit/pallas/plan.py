"""The shape of a Pallas kernel, decided before any text is written: steps, blocks, and what is kept between steps.

A TPU kernel runs its grid in order, so parallel loops become leading grid axes and sequential loops one last axis of *steps*:
each loop is a *phase* of it, a run of as many steps as it has tiles. Statements then fall into *segments* that run on the same
steps. A variable that crosses from one segment to another is computed again where that is cheap and gives the same value,
and is *kept* in VMEM scratch otherwise. Knows the IR, not a line of JAX.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Literal

from kpt_dsl import ir
from kpt_dsl.errors import TargetError
from kpt_dsl.ir import Axis, Expr, Stmt
from kpt_dsl.passes import fold
from kpt_dsl.passes.padding import whole

Side = Literal["column", "row", "wide"]
"""How a value with one axis lies in two-dimensional registers: along sublanes (length, 1), or along lanes (1, length). Where a
wide one is asked for, a column may be given: (length, 128) has all lanes alike, so that none must be sent to the others."""

STEP = "<step>"
"""The tile of an axis that follows the steps of the last grid axis, whichever loop runs; no variable can have this name."""

SUBLANES, LANES = 8, 128
"""A vector register of 32-bit elements (Pallas TPU documentation, "Block shapes")."""


@dataclass(frozen=True)
class Phase:
    """One sequential loop, over tiles or single indices, as ``steps`` steps of the last grid axis from step ``first`` on."""

    loop: ir.For
    first: int
    steps: int
    bounded: bool  # the loop may visit fewer tiles than there are

    @property
    def last(self) -> int:
        return self.first + self.steps - 1

    @property
    def name(self) -> str:
        """Of its loop's variable."""
        return self.loop.over.name

    @property
    def dim(self) -> str:
        return self.loop.over.dim

    @property
    def tiled(self) -> bool:
        """Whether it goes through tiles, not single indices."""
        return isinstance(self.loop.over, ir.Tile)


@dataclass(frozen=True)
class Segment:
    """Statements that run on the same steps: a loop's body on its phase, others on the one step ``step``."""

    body: tuple[Stmt, ...]
    step: int
    phase: Phase | None = None

    @cached_property
    def exposed(self) -> frozenset[str]:
        """Variables that are read here before they are assigned here."""
        found: set[str] = set()
        assigned: set[str] = set()
        for stmt in self.body:
            found |= read_by(stmt) - assigned
            if isinstance(stmt, ir.Assign):
                assigned.add(stmt.name)
        return frozenset(found)

    @cached_property
    def assigned(self) -> frozenset[str]:
        return frozenset(s.name for s in self.body if isinstance(s, ir.Assign))


def read_by(stmt: Stmt) -> set[str]:
    """The variables that a statement reads, its own expressions only."""
    return {e.name for top in ir.expressions(stmt) for e in ir.walk(top) if isinstance(e, ir.Var)}


@dataclass(frozen=True)
class Plan:
    """A kernel with its tile sizes, cut into phases and segments."""

    kernel: ir.Kernel
    dims: Mapping[str, int]
    lanes: Mapping[str, int]  # tiled dim -> lanes of its tiles, never more than the extent
    tiles: Mapping[str, ir.Tile]
    segments: tuple[Segment, ...] = ()
    unroll: int = 1
    """How many tiles of its only loop a step goes through."""

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(s.phase for s in self.segments if s.phase)

    @property
    def steps(self) -> int:
        """Extent of the last grid axis; 0 where the kernel has none."""
        return sum(p.steps for p in self.phases)

    def step(self, names: Mapping[str, str]) -> str:
        """The name of the last grid axis: that of the only loop's tile in ``names``, where it is at one."""
        return names[self.phases[0].name] if len(self.phases) == 1 and self.unroll == 1 else "step"

    # -------------------------------------------------------------- variables that cross segments
    @cached_property
    def definitions(self) -> dict[str, Expr]:
        """Variables that have one value for a whole program and are cheap: each segment may compute them anew."""
        changing = {name for s in self.segments if s.phase for name in s.assigned}
        found: dict[str, Expr] = {}
        for stmt in (stmt for s in self.segments if not s.phase for stmt in s.body):
            if not isinstance(stmt, ir.Assign) or stmt.name in changing:
                continue
            inside = list(ir.walk(stmt.value))
            known = all(e.name in found for e in inside if isinstance(e, ir.Var))
            if known and not any(isinstance(e, ir.Reduce | ir.Dot) or self._turned(e) for e in inside):
                found[stmt.name] = stmt.value
        return found

    def _turned(self, node: Expr) -> bool:
        """Whether a load lies otherwise in memory than where it is used."""
        axes = node.type.shape if isinstance(node, ir.Load) else ()
        return len(axes) == 1 and self.side(axes[0]) != self.stored(axes[0])

    @cached_property
    def _in_loops(self) -> dict[str, Expr]:
        """Scalars that a loop's body computes once, from what a step knows before it begins: index maps compute them anew."""
        assigned = [s for segment in self.segments for s in segment.body if isinstance(s, ir.Assign)]
        found: dict[str, Expr] = {}
        for stmt in (s for segment in self.segments if segment.phase for s in segment.body if isinstance(s, ir.Assign)):
            inside = list(ir.walk(stmt.value))
            once = sum(s.name == stmt.name for s in assigned) == 1
            known = all(e.name in found or e.name in self.definitions for e in inside if isinstance(e, ir.Var))
            if once and known and not any(e.type.shape for e in inside):
                found[stmt.name] = stmt.value
        return found

    @cached_property
    def live(self) -> tuple[frozenset[str], ...]:
        """For each segment, the variables that are still read after it has run."""
        found: list[frozenset[str]] = []
        live: frozenset[str] = frozenset()
        for segment in reversed(self.segments):
            if segment.phase:  # runs any number of times, or never
                live |= segment.exposed
                found.append(live)
            else:
                found.append(live)
                live = segment.exposed | (live - segment.assigned)
        return tuple(reversed(found))

    @cached_property
    def kept(self) -> dict[str, ir.Type]:
        """Variables that live in scratch between steps, with their types."""
        crossing = frozenset[str]().union(*self.live) - self.definitions.keys()
        assigned = [s for segment in self.segments for s in segment.body if isinstance(s, ir.Assign)]
        return {s.name: s.value.type for s in assigned if s.name in crossing}

    def wide(self, kind: ir.Type) -> bool:
        """Whether a kept variable has a column's values in all lanes."""
        return len(kind.shape) == 1 and self.side(kind.shape[0]) == "column" and kind.dtype.bits == 32

    def resolved(self, node: Expr) -> Expr:
        """An expression with the variables in it replaced by their definitions.

        Raises TargetError where one depends on what a loop computed: TPU block indices and bounds cannot.
        """
        if isinstance(node, ir.Var):
            value = self.definitions.get(node.name) or self._in_loops.get(node.name)
            if value is None:
                raise TargetError(
                    f"{self.kernel.name}: an index or a loop bound depends on {node.name}, which a loop computes "
                    f"(line {node.loc.line}); on a TPU both must be known before a program starts"
                )
            return self.resolved(value)
        return ir.with_children(node, tuple(self.resolved(c) for c in ir.children(node)))

    # -------------------------------------------------------------- axes
    def place(self, axis: Axis) -> Axis:
        """What axes share that always lie at one place: tiles of successive loops over a dim; a dim whole and in one tile."""
        if axis.tile is None or axis.tile == STEP or any(g.name == axis.tile for g in self.kernel.grid):
            return axis
        return Axis(axis.dim, STEP if any(p.name == axis.tile for p in self.phases) else None)

    @cached_property
    def _columns(self) -> dict[Axis, int]:
        """How many uses of values with a single axis want them as columns, less those that want rows."""
        votes: dict[Axis, int] = {}
        for node in (e for s in self.segments for e in ir.every_expr(s.body)):
            match node:
                case ir.Expand(x, at) if len(x.type.shape) == 1 and not isinstance(x, ir.Lanes | ir.Valid):
                    axis, column = self.place(x.type.shape[0]), at == 1
                case ir.Reduce(_, x, at) if len(x.type.shape) == 2:
                    axis, column = self.place(node.type.shape[0]), at == 1
                case ir.Gather(index=index) if len(node.type.shape) == 2:
                    place, entry = next((i, e) for i, e in enumerate(index) if isinstance(e, Expr) and e.type.shape)
                    axis, column = self.place(entry.type.shape[0]), place + 1 < len(index)
                case _:
                    continue
            votes[axis] = votes.get(axis, 0) + (1 if column else -1)
        return votes

    def side(self, axis: Axis) -> Side:
        """On which side values that have a single axis lie: where most of their uses want them, if tiles may be so short."""
        return "column" if self._columns.get(self.place(axis), 0) > 0 else self.stored(axis)

    def stored(self, axis: Axis) -> Side:
        """On which side they lie in memory, where a column takes 128 times its bytes: as rows, but for tiles that are too
        short."""
        partial = axis.tile is not None and self.lanes[axis.dim] != self.dims[axis.dim]
        return "column" if partial and self.lanes[axis.dim] % LANES else "row"


def plan(
    kernel: ir.Kernel, dims: Mapping[str, int], lanes: Mapping[str, int], tiles: Mapping[str, ir.Tile], unroll: int = 1
) -> Plan:
    """Cut a kernel into phases and segments. Raises TargetError for a loop inside a loop."""
    kernel = replace(kernel, body=versioned(kernel.body))
    segments: list[Segment] = []
    straight: list[Stmt] = []
    first = 0
    for stmt in kernel.body:
        if not isinstance(stmt, ir.For):
            straight.append(stmt)
            continue
        if any(isinstance(inner, ir.For) for inner in stmt.body):
            raise TargetError(
                f"{kernel.name}: a sequential loop inside another (line {stmt.loc.line}) has no TPU form yet"
            )
        if straight:
            segments.append(Segment(tuple(straight), max(0, first - 1)))
            straight = []
        width = lanes[stmt.over.dim] * unroll if isinstance(stmt.over, ir.Tile) else 1
        phase = Phase(stmt, first, -(-dims[stmt.over.dim] // width), bounded=not whole(stmt))
        segments.append(Segment(stmt.body, first, phase))
        first += phase.steps
    if straight:
        segments.append(Segment(tuple(straight), max(0, first - 1)))
    return Plan(kernel, dims, lanes, tiles, tuple(segments), unroll)


def unrollable(kernel: ir.Kernel) -> ir.For | None:
    """The loop of which a step may go through several tiles: a kernel's only one, over tiles that are not dealt out, and on
    which no index depends."""
    loops = [s for s in ir.statements(kernel.body) if isinstance(s, ir.For)]
    if len(loops) != 1 or not isinstance(loops[0].over, ir.Tile) or loops[0].share is not None:
        return None
    body, tile = loops[0].body, loops[0].tile.name
    made = {s.name for s in body if isinstance(s, ir.Assign)}
    accesses = [e for e in ir.every_expr(body) if isinstance(e, ir.Read)] + [s for s in body if isinstance(s, ir.Store)]
    inside = (e for a in accesses for i in a.index if isinstance(i, Expr) for e in ir.walk(i))
    moving = any(
        (isinstance(e, ir.Var) and e.name in made) or tile in {getattr(e, "tile", None), *(a.tile for a in e.type.shape)}
        for e in inside
    )
    return None if moving else loops[0]


def settled(body: Iterable[Stmt], dims: Mapping[str, int]) -> tuple[Stmt, ...]:
    """A body in which loops whose computed bounds are those of the whole dim, at these extents, say so."""
    known: dict[str, int] = {}

    def value(node: Expr) -> int | None:
        match node:
            case ir.Const(int(number)):
                return number
            case ir.Size(dim):
                return dims[dim]
            case ir.Var(name):
                return known.get(name)
            case ir.Binary("max" | "min" as op, a, b):
                x, y = value(a), value(b)
                return None if x is None or y is None else max(x, y) if op == "max" else min(x, y)
        return None

    done: list[Stmt] = []
    for stmt in body:
        match stmt:
            case ir.Assign():
                known.pop(stmt.name, None)
                if not stmt.value.type.shape and (number := value(stmt.value)) is not None:
                    known[stmt.name] = number
            case ir.For():
                for inner in ir.statements(stmt.body):
                    if isinstance(inner, ir.Assign):
                        known.pop(inner.name, None)
                if (value(stmt.start), value(stmt.stop)) == (0, dims[stmt.over.dim]):
                    stmt = replace(stmt, start=ir.scalar(0), stop=ir.Size(stmt.over.dim, type=stmt.stop.type))
        done.append(stmt)
    return tuple(done)


def unrolled(body: Iterable[Stmt], single: Callable[[ir.For], bool]) -> tuple[Stmt, ...]:
    """A body in which each loop that is known to run exactly once is replaced by what is in it."""
    done: list[Stmt] = []
    for stmt in body:
        if not isinstance(stmt, ir.For):
            done.append(stmt)
            continue
        inner = unrolled(stmt.body, single)
        done.extend(inner if single(stmt) else [replace(stmt, body=inner)])
    return tuple(done)


def versioned(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The same body where a variable assigned several times, but in no loop, has a name for each of its values.

    Without loops that matters for scalars only, which are computed before everything else.
    """
    loops = [s for s in body if isinstance(s, ir.For)]
    in_loops = {s.name for loop in loops for s in ir.statements(loop.body) if isinstance(s, ir.Assign)}
    taken = {s.name for s in ir.statements(body) if isinstance(s, ir.Assign)}
    current: dict[Expr, Expr] = {}
    assigned: set[str] = set()
    done: list[Stmt] = []
    for stmt in body:
        stmt = fold.rebuild_statement(stmt, current)
        if isinstance(stmt, ir.Assign) and stmt.name not in in_loops and (loops or not stmt.value.type.shape):
            name = stmt.name
            if name in assigned:
                fresh = next(f"{name}{n}" for n in count(2) if f"{name}{n}" not in taken)
                taken.add(fresh)
                current[ir.Var(name, type=stmt.value.type)] = ir.Var(fresh, type=stmt.value.type)
                stmt = replace(stmt, name=fresh)
            assigned.add(name)
        done.append(stmt)
    return tuple(done)
