"""What the rules of a space ask about one specialisation of a kernel, read once from its IR.

Facts are about the program, not the machine: which tiles there are, which tensors are read where, which products there are and
how they hang together. Knows no target and no config.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.dtypes import DType
from kpt_dsl.same import remembered
from kpt_dsl.space.instructions import instructions

if TYPE_CHECKING:
    from kpt_dsl.extents import Extents

Axes = tuple[ir.Axis, ...]
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})

Scope = int
"""Where in a program: 0 is outside every sequential loop, i > 0 is directly inside ``Facts.loops[i - 1]``."""


@dataclass(frozen=True)
class Access:
    """A tile read from a tensor or written to one."""

    tensor: ir.Tensor
    axes: Axes
    scope: Scope
    store: bool = False
    product: bool = False
    """It is an operand of a product, or (a store) holds a product's result."""
    add: bool = False
    """It adds to what the tensor holds."""
    places: tuple[ir.Axis | ir.Expr, ...] = ()
    """Its index, where tiles of indices tell which elements it is of."""
    parts: tuple[int, ...] = ()
    """The numbers among its indices: of which part of the tensor it is."""

    @staticmethod
    def of(tensor: ir.Tensor, node: ir.Read | ir.Store, scope: Scope, **what: bool) -> "Access":
        gathers = any(isinstance(i, ir.Expr) and i.type.shape for i in node.index)
        parts = tuple(int(i.value) for i in node.index if isinstance(i, ir.Const))
        return Access(tensor, ir.kept(node.index), scope, **what, places=node.index if gathers else (), parts=parts)

    @property
    def looked_up(self) -> Axes:
        """The axes along which its elements lie where indices tell."""
        return ir.kept(tuple(i for i in self.places if isinstance(i, ir.Expr)))

    @property
    def block(self) -> Axes:
        """The tile of the tensor that holds them: whole along dims in which they are looked up."""
        if not self.places:
            return self.axes
        dims = zip(self.places, self.tensor.dims, strict=True)
        return tuple(i if isinstance(i, ir.Axis) else ir.Axis(d) for i, d in dims if isinstance(i, ir.Axis) or i.type.shape)


@dataclass(frozen=True)
class Product:
    """A dot: (m, k) x (k, n)."""

    m: ir.Axis
    n: ir.Axis
    k: ir.Axis
    dtype: DType
    scope: Scope
    loads: tuple[Access | None, Access | None]
    """Where each operand was loaded; None for one that was computed."""
    chained: bool
    """An operand is computed from another product of the same loop."""
    carried: bool
    """It adds to an accumulator."""

    @property
    def link(self) -> bool:
        """Whether others are made of its result: it adds to nothing, and no product comes before it."""
        return not self.carried and not self.chained


@dataclass(frozen=True)
class Arithmetic:
    """The elementwise operations and reductions over tiles of one shape in one scope."""

    operations: tuple[str, ...]
    axes: Axes
    scope: Scope
    instructions: int
    """Of one element, in instructions of plain arithmetic."""


@dataclass(frozen=True)
class Read:
    """What the IR of a kernel says by itself, whatever its extents are."""

    kernel: ir.Kernel
    loads: tuple[Access, ...]
    stores: tuple[Access, ...]
    products: tuple[Product, ...]
    arithmetic: tuple[Arithmetic, ...]
    loops: tuple[ir.For, ...]
    """Every sequential loop, in program order, with bounds in which variables are replaced by what they stand for."""
    outer: tuple[Scope, ...]
    """The scope that each loop stands in."""
    carried: tuple[tuple[ir.Type, ...], ...]
    """The tiles that each loop carries from one step to the next."""
    tile_types: frozenset[ir.Type]
    alive: tuple[tuple[tuple[ir.Type, ...], ...], ...]
    """For each scope, and each reduction directly in it, the tiles that were made there before and are still read after it."""
    reductions: tuple[tuple[ir.Reduce, ...], ...]
    """For each scope, those in it and in the loops inside it."""


@dataclass(frozen=True)
class Facts(Read):
    """The facts of one specialisation, of which ``kernel`` is the IR, at extents."""

    extents: "Extents"
    least: "Facts | None" = None
    """The facts at the least extents that configs are to serve, where these are not all alike."""

    @cached_property
    def dims(self) -> dict[str, int]:
        return dict(self.extents.dims)

    @cached_property
    def grid_tiles(self) -> tuple[ir.Tile, ...]:
        return tuple(loop for loop in self.kernel.grid if isinstance(loop, ir.Tile))

    @cached_property
    def tiles(self) -> dict[str, ir.Tile]:
        """Tile variables, those of the grid first."""
        return {tile.name: tile for tile in ir.tiles(self.kernel)}

    @cached_property
    def variables(self) -> dict[str, ir.Tile | ir.Each]:
        """The variables of all loops, by name."""
        return {loop.name: loop for loop in (*self.kernel.grid, *(loop.over for loop in self.loops))}

    @cached_property
    def blocks(self) -> dict[str, tuple[ir.Axis, ...]]:
        """Block knobs in order, with the axes that each one sizes."""
        found: dict[str, tuple[ir.Axis, ...]] = {}
        for tile in self.tiles.values():
            axes = found.get(tile.block, ())
            found[tile.block] = axes if tile.axis in axes else (*axes, tile.axis)
        return found

    @cached_property
    def block_of(self) -> dict[ir.Axis, str]:
        return {axis: block for block, axes in self.blocks.items() for axis in axes}

    def extent(self, axis: ir.Axis) -> int:
        """Elements along the whole dim of an axis."""
        return 1 if axis == ir.UNIT else self.dims[axis.dim]

    def is_common(self, access: Access) -> bool:
        """Whether every program reads the same tiles there: no index depends on where the program stands."""
        return len(access.axes) == len(access.tensor.dims) and self._placed.isdisjoint(access.axes)

    @cached_property
    def _placed(self) -> frozenset[ir.Axis]:
        """The axes whose tiles lie elsewhere in each program."""
        return self.streamed.union(tile.axis for tile in self.grid_tiles)

    @cached_property
    def links(self) -> int:
        """How many products make what another one reads."""
        return sum(p.link for p in self.products)

    @cached_property
    def beside_scores(self) -> tuple[Access, ...]:
        """Tiles that are loaded beside what links of a chain give: masks, or what is added."""
        scores = [{p.m, p.n} for p in self.products if p.link]
        return tuple([load for load in self.loads if {*load.axes} in scores])

    @cached_property
    def uneven(self) -> bool:
        """Whether some programs have more to do than others: a loop's bounds depend on where their tiles lie."""
        bounds = (node for loop in self.loops for bound in (loop.start, loop.stop) for node in ir.walk(bound))
        return any(isinstance(node, ir.Start | ir.Stop | ir.Load) for node in bounds)

    def shared_out(self, scope: Scope) -> bool:
        """Whether a scope is a loop over a program's share of a dim, without products: rows stream through it."""
        return bool(scope) and self.loops[scope - 1].share is not None and not self.products

    @cached_property
    def streamed(self) -> frozenset[ir.Axis]:
        """The axes along which such loops go."""
        return frozenset(loop.tile.axis for scope, loop in enumerate(self.loops, 1) if self.shared_out(scope))

    @cached_property
    def read_again(self) -> tuple[tuple[Access, ...], ...]:
        """For each scope, the tiles that a streaming loop reads more than once a step, so as not to hold them meanwhile."""
        scopes = range(len(self.loops) + 1)
        counts = [Counter(a for a in self.loads if a.scope == s and self.shared_out(s)) for s in scopes]
        again = [[a for a, times in counts[s].items() if times > 1 and self.loops[s - 1].tile.axis in a.axes] for s in scopes]
        return tuple(map(tuple, again))

    @cached_property
    def summed_down(self) -> frozenset[ir.Axis]:
        """Axes along rows of memory whose tiles are reduced along other axes only: each program has columns to itself."""
        reductions = self.reductions[0]
        along = {e.x.type.shape[e.axis] for e in reductions}
        return self.row_axes.intersection(*(e.type.shape for e in reductions)) - along if reductions else frozenset()

    @cached_property
    def beside_results(self) -> tuple[Access, ...]:
        """The tiles that are read behind all loops, element by element with the result of a product that is then stored."""
        results = {store.axes for store in self.stores if store.product and not store.scope and len(store.axes) > 1}
        operands = {load.tensor.name for product in self.products for load in product.loads if load is not None}
        behind = (load for load in self.loads if not load.scope and load.axes in results)
        return tuple(load for load in behind if load.tensor.name not in operands)

    @cached_property
    def gathered(self) -> dict[str, int]:
        """Of tensors whose elements are looked up only, how many are, at most."""
        found: dict[str, int] = {}
        each = math.prod(self.dims[loop.dim] for loop in self.variables.values() if isinstance(loop, ir.Each))
        for tensor in self.kernel.tensors:
            mine = [a for a in (*self.loads, *self.stores) if a.tensor == tensor]
            if mine and all(a.places for a in mine):
                found[tensor.name] = each * sum(math.prod(map(self.extent, a.axes)) for a in mine)
        return found

    @cached_property
    def product_axes(self) -> frozenset[ir.Axis]:
        return frozenset(axis for product in self.products for axis in (product.m, product.n, product.k))

    @cached_property
    def row_axes(self) -> frozenset[ir.Axis]:
        """Axes along which tiles lie in rows of neighbouring elements; a tile with one axis tells only of axes of no other."""
        strides = dict(self.extents.strides)
        neighbours: dict[ir.Axis, bool] = {}
        for access in sorted((*self.loads, *self.stores), key=lambda access: len(access.axes) < 2):
            alone = len(access.axes) < 2
            for axis in (a for a in access.axes if a not in access.looked_up):
                step = strides[access.tensor.name][access.tensor.dims.index(axis.dim)]
                if not (alone and axis in neighbours):
                    neighbours[axis] = neighbours.get(axis, False) or step == 1
        return frozenset(axis for axis, near in neighbours.items() if near)


def collect(kernel: ir.Kernel, extents: "Extents") -> Facts:
    """Read the facts of a kernel at extents."""
    return Facts(**vars(_read(kernel)), extents=extents)


@remembered(1024)
def _read(kernel: ir.Kernel) -> Read:
    reader = _Reader(kernel)
    reader.body(kernel.body, 0)
    bodies = (kernel.body, *(loop.body for loop in reader.loops))
    return Read(
        kernel=kernel,
        loads=tuple(reader.loads),
        stores=tuple(reader.stores),
        products=tuple(reader.products),
        arithmetic=tuple(Arithmetic(tuple(o), *where, instructions(tuple(o))) for where, o in reader.arithmetic.items()),
        loops=tuple(reader.loops),
        outer=tuple(reader.outer),
        carried=tuple(reader.carried),
        tile_types=frozenset(e.type for e in ir.every_expr(kernel.body) if e.type.shape),
        alive=tuple(tuple(_alive(body)) for body in bodies),
        reductions=tuple(tuple(e for e in ir.every_expr(body) if isinstance(e, ir.Reduce)) for body in bodies),
    )


def _alive(body: tuple[ir.Stmt, ...]) -> Iterator[tuple[ir.Type, ...]]:
    """The tiles that live across each reduction directly in a body, those included that were made before it."""
    inside = {s.name for s in ir.statements(body) if isinstance(s, ir.Assign)}
    read = (e for e in ir.every_expr(body) if isinstance(e, ir.Var) and e.type.shape)
    held = {e.name: e.type for e in read if e.name not in inside}
    made: dict[str, ir.Type] = {}
    for i, stmt in enumerate(body):
        if isinstance(stmt, ir.Assign) and stmt.value.type.shape:
            made[stmt.name] = stmt.value.type
        if isinstance(stmt, ir.For) or any(isinstance(e, ir.Reduce) for e in ir.every_expr((stmt,))):
            kept = {name: kind for name, kind in made.items() if _is_read(name, body[i + 1 :])}
            yield tuple((held | kept).values())


def _is_read(name: str, rest: tuple[ir.Stmt, ...]) -> bool:
    """Whether a variable is read before it is given another value."""
    for stmt in rest:
        if any(isinstance(e, ir.Var) and e.name == name for e in ir.every_expr((stmt,))):
            return True
        if isinstance(stmt, ir.Assign) and stmt.name == name:
            return False
    return False


class _Reader:
    """Walks a body once in program order, keeping what each variable was last assigned."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.loads: list[Access] = []
        self.stores: list[Access] = []
        self.products: list[Product] = []
        self.arithmetic: dict[tuple[Axes, Scope], list[str]] = {}
        self.loops: list[ir.For] = []
        self.outer: list[Scope] = []
        self.carried: list[tuple[ir.Type, ...]] = []
        self._values: dict[str, ir.Expr] = {}
        self._types: dict[str, ir.Type] = {}
        self._loaded_in: dict[str, Scope] = {}
        self._made_by_product: set[str] = set()

    def body(self, body: tuple[ir.Stmt, ...], scope: Scope) -> None:
        for stmt in body:
            match stmt:
                case ir.Assign(name=name, value=value):
                    self._expr(value, scope)
                    self._assign(name, value, scope)
                case ir.Store(tensor=tensor, index=index, value=value, add=add):
                    for entry in (*(i for i in index if isinstance(i, ir.Expr) and i.type.shape), value):
                        self._expr(entry, scope)
                    made = self._from_product(value)
                    self.stores.append(Access.of(self.kernel.tensor(tensor), stmt, scope, store=True, product=made, add=add))
                case ir.For():
                    self._loop(stmt, scope)

    def _loop(self, loop: ir.For, scope: Scope) -> None:
        # Bounds are kept free of variables, so that they can be evaluated wherever the loop is looked at.
        start, stop = self._inlined(loop.start), self._inlined(loop.stop)
        self.loops.append(replace(loop, start=start, stop=stop))
        self.outer.append(scope)
        self.carried.append(tuple(self._types[name] for name in loop.carried if self._types[name].shape))
        for name in loop.carried:
            self._values.pop(name, None)
        self.body(loop.body, len(self.loops))
        for name in loop.carried:
            self._values.pop(name, None)

    def _assign(self, name: str, value: ir.Expr, scope: Scope) -> None:
        if self._from_product(value):
            self._made_by_product.add(name)
        self._types[name] = value.type
        self._values[name] = self._inlined(value) if not value.type.shape else value
        self._loaded_in[name] = scope

    def _inlined(self, node: ir.Expr) -> ir.Expr:
        """A scalar with its variables replaced by their values, as far as those are known before the run."""
        if isinstance(node, ir.Var):
            value = self._values.get(node.name)
            return node if value is None or value.type.shape else value
        return ir.with_children(node, tuple(self._inlined(child) for child in ir.children(node)))

    def _from_product(self, node: ir.Expr) -> bool:
        return any(
            isinstance(n, ir.Dot) or (isinstance(n, ir.Var) and n.name in self._made_by_product) for n in ir.walk(node)
        )

    def _expr(self, top: ir.Expr, scope: Scope) -> None:
        for node in ir.walk(top):
            match node:
                case ir.Load(tensor=tensor) | ir.Gather(tensor=tensor):
                    self.loads.append(Access.of(self.kernel.tensor(tensor), node, scope))
                case ir.Dot():
                    self._dot(node, scope)
                case ir.Unary(op=op) | ir.Binary(op=op) if node.type.shape:
                    self._operate(op, node.type.shape, scope)
                case ir.Where() | ir.Cast() if node.type.shape:
                    self._operate("where", node.type.shape, scope)
                case ir.Reduce(op=op, x=x):
                    self._operate(op, x.type.shape, scope)

    def _operate(self, op: str, axes: Axes, scope: Scope) -> None:
        self.arithmetic.setdefault((axes, scope), []).append(op)

    def _dot(self, node: ir.Dot, scope: Scope) -> None:
        loads = (self._operand(node.a, scope), self._operand(node.b, scope))
        computed = [x for x, load in ((node.a, loads[0]), (node.b, loads[1])) if load is None]
        (m, k), n = node.a.type.shape, node.b.type.shape[1]
        self.products.append(
            Product(
                m=m,
                n=n,
                k=k,
                dtype=node.a.type.dtype,
                scope=scope,
                loads=loads,
                chained=any(self._from_product(x) for x in computed),
                carried=node.acc is not None,
            )
        )

    def _operand(self, node: ir.Expr, scope: Scope) -> Access | None:
        """Where an operand was loaded, looking through casts, transposes and variables."""
        while True:
            match node:
                case ir.Cast(x=x) | ir.Transpose(x=x):
                    node = x
                case ir.Var(name=name) if name in self._values:
                    scope, node = self._loaded_in[name], self._values[name]
                case ir.Load(tensor=tensor) | ir.Gather(tensor=tensor):
                    return Access.of(self.kernel.tensor(tensor), node, scope, product=True)
                case _:
                    return None
