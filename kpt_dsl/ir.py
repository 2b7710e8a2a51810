"""The tile IR: what a kernel computes on tiles, on one page.

A kernel is a parallel grid of programs; each runs a straight list of statements with sequential loops over tiles.
Values are tiles whose axes are *symbols*: an axis is the lanes of one tile (``n`` over dim ``N``) or a whole dim (``D``);
how long an axis is in memory is decided later, by a config. Nothing here knows a device, a config or an array library.
Every node is frozen, typed and carries the place in the kernel's source that it came from.

Semantics in one paragraph: a tile at an edge has lanes that hold no element (*padding*). In an IR fresh from the front end
padding does not exist: reductions, products and stores see valid lanes only. ``passes.padding`` makes that true on machines
with fixed tile sizes, by writing ``Valid`` masks where they cannot be proven neutral.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from operator import is_
from pathlib import Path
from typing import Literal

from kpt_dsl.dtypes import DType, i32


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in a kernel's source: 1-based line, 0-based columns, and the line's text."""

    file: str
    line: int
    column: int = 0
    end_column: int = 0
    text: str = ""

    def explain(self, message: str, remedy: str = "") -> str:
        """An error's text: file and line, the line with a caret under the culprit, and what to write instead."""
        number = str(self.line)
        caret = " " * self.column + "^" * max(1, self.end_column - self.column)
        shown = [
            f"{Path(self.file).name}:{number}: {message}",
            f"  {number} | {self.text}",
            f"  {' ' * len(number)} | {caret}",
        ]
        return "\n".join([*shown, f"  {remedy}"] if remedy else shown)


NOWHERE = Loc("<generated>", 0)


# ------------------------------------------------------------------ axes and types
@dataclass(frozen=True, slots=True)
class Axis:
    """The lanes along one side of a tile: of tile variable ``tile`` over ``dim``, or of the whole ``dim`` (tile is None)."""

    dim: str
    tile: str | None = None

    def __str__(self) -> str:
        return self.tile or self.dim


UNIT = Axis("1")
"""An axis of extent one; it broadcasts."""


@dataclass(frozen=True, slots=True)
class Type:
    """Element type and shape of a value; a scalar has the empty shape."""

    dtype: DType
    shape: tuple[Axis, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]" if self.shape else str(self.dtype)


# ------------------------------------------------------------------ expressions
@dataclass(frozen=True, slots=True, kw_only=True)
class Expr:
    """Base of all expressions."""

    type: Type
    loc: Loc = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A number; float constants may be infinite."""

    value: float | int | bool


@dataclass(frozen=True, slots=True)
class Param(Expr):
    """A scalar argument of the kernel."""

    name: str


@dataclass(frozen=True, slots=True)
class Size(Expr):
    """The extent of a dim (i32)."""

    dim: str


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """A variable assigned by an earlier ``Assign``. Within a loop, a variable assigned before it is carried."""

    name: str


@dataclass(frozen=True, slots=True)
class Index(Expr):
    """The index of a loop over each index of a dim (i32 scalar)."""

    name: str


@dataclass(frozen=True, slots=True)
class Start(Expr):
    """First index of a tile (i32 scalar), padding included: a multiple of the tile's block, unless its loop is ``at_start`` or
    goes through groups."""

    tile: str


@dataclass(frozen=True, slots=True)
class Stop(Expr):
    """One past the last *valid* index of a tile (i32 scalar)."""

    tile: str


@dataclass(frozen=True, slots=True)
class Block(Expr):
    """How many lanes a tile has (i32 scalar, known once a config is)."""

    tile: str


@dataclass(frozen=True, slots=True)
class Count(Expr):
    """How many elements a tile has (i32 scalar)."""

    tile: str


@dataclass(frozen=True, slots=True)
class Before(Expr):
    """How many elements a loop visits before a tile of it (i32 scalar). ``begin``: the first of them all."""

    tile: str
    begin: Expr


@dataclass(frozen=True, slots=True)
class Lanes(Expr):
    """The indices along an axis: i32 of shape (axis,)."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Valid(Expr):
    """Which lanes of an axis hold an element: bool of shape (axis,). Written by passes only."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """A tile of a tensor. ``index`` has one entry a tensor dim: an Axis keeps it, a scalar Expr picks one element.

    ``masked`` are the axes whose padding lanes must be read as zero; lanes of other axes may hold anything there but
    must not be read out of bounds (set by ``passes.padding``). ``when``: a bool scalar; where it is false nothing is read, the
    elements are zeros and the index may be of no element.
    """

    tensor: str
    index: "tuple[Axis | Expr, ...]"
    masked: tuple[Axis, ...] = ()
    when: Expr | None = None


@dataclass(frozen=True, slots=True)
class Gather(Expr):
    """Elements of a tensor at places that tiles of integers name.

    ``index`` is a load's, but one entry at least is such a tile, which picks an element for each of its own. The shape has the
    axes of all entries, each once, in the order in which they are met; those of a tile are in that order too.
    ``masked``, as a load's: those of the index tiles among them, along which padding is never an address.
    ``when``: a bool scalar, or a tile that broadcasts to the shape; where it is false nobody asks what the element is, and
    indices may be of none.
    """

    tensor: str
    index: "tuple[Axis | Expr, ...]"
    masked: tuple[Axis, ...] = ()
    when: Expr | None = None


Read = Load | Gather
"""What reads a tensor."""


@dataclass(frozen=True, slots=True)
class Checked(Expr):
    """An index of one dim of a tensor, or a tile of them, that may not be one: it is reported, or brought back to the nearest
    that is.

    Stands in the ``index`` of a load or a store only, where ``passes.indices`` could not prove it (``loc``: that of the index).
    """

    x: Expr
    tensor: str
    dim: str


UnaryOp = Literal[
    "neg", "not", "abs", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "ndtr", "sigmoid",
    "floor", "round",
]  # fmt: skip
BinaryOp = Literal[
    "add", "sub", "mul", "div", "floordiv", "mod", "max", "min", "maxnum", "minnum",
    "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "shl", "shr",
]  # fmt: skip
ReduceOp = Literal["sum", "max", "min", "maxnum", "minnum"]


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    op: UnaryOp
    x: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """Elementwise; operands have the same dtype (comparisons give bool) and the same rank, or one is a scalar.

    ``div`` is true division of floats; ``floordiv`` and ``mod`` take integers and round towards minus infinity.
    ``and``, ``or`` and ``xor`` take conditions or integers. ``shl`` and ``shr`` (which keeps the sign) take integers: bits that
    leave the type are dropped, all of them by a count that is negative or no less than the type's width.
    ``max`` and ``min`` of floats are NaN where an operand is; ``maxnum`` and ``minnum``, of floats only, may be the other
    operand there.
    """

    op: BinaryOp
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Where(Expr):
    cond: Expr
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Cast(Expr):
    """To ``type.dtype``, rounding to nearest even; floats that overflow fp8 saturate.

    Integers are made of f32 (by truncation; what is too large saturates, NaN is 0), of other integers (wrapping) and of
    conditions; floats other than f32 of floats only. Of i8 and u8 only i32 is made, and they of i32 only. To a condition
    nothing is cast: it is compared with zero.
    """

    x: Expr


@dataclass(frozen=True, slots=True)
class Full(Expr):
    """A tile of ``type.shape`` filled with a scalar."""

    value: Expr


@dataclass(frozen=True, slots=True)
class Expand(Expr):
    """A unit axis inserted at position ``axis``."""

    x: Expr
    axis: int


@dataclass(frozen=True, slots=True)
class Transpose(Expr):
    """A two-axis tile with its axes swapped."""

    x: Expr


@dataclass(frozen=True, slots=True)
class Half(Expr):
    """The first or the second (``which``: 0 or 1) along the last axis, a whole dim of extent 2, which disappears."""

    x: Expr
    which: int


@dataclass(frozen=True, slots=True)
class Join(Expr):
    """Two tiles of one type beside each other along a new last axis, a whole dim of extent 2."""

    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Reduce(Expr):
    """Over one axis, which disappears. Floats reduce in f32; NaN is kept and may be dropped as in ``Binary``."""

    op: ReduceOp
    x: Expr
    axis: int


@dataclass(frozen=True, slots=True)
class Dot(Expr):
    """(m, k) x (k, n) -> (m, n) in f32, added to ``acc`` when there is one. Operands are both f32, f16 or bf16, or fp8."""

    a: Expr
    b: Expr
    acc: Expr | None = None


# ------------------------------------------------------------------ statements
@dataclass(frozen=True, slots=True, kw_only=True)
class Stmt:
    """Base of all statements."""

    loc: Loc = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Assign(Stmt):
    """Variables are mutable but keep one type for life."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """Valid lanes of ``value`` to a tensor. ``masked``: the axes along which lanes may be padding (set by passes.padding).

    ``add``: they are added to what the tensor (f32) holds, element by element, whichever program comes first. A tensor that is
    added to is not stored to otherwise. Only then may ``index`` hold tiles, as a gather's.
    """

    tensor: str
    index: "tuple[Axis | Expr, ...]"
    value: Expr
    masked: tuple[Axis, ...] = ()
    add: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """Runs of indices, one behind the other: element g of ``tensor`` (i32, of the one dim ``dim``) is where group g begins and
    the one before it ends. ``index`` names the ``Index`` that is the group of a tile."""

    tensor: str
    dim: str
    index: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile variable: ``block`` is the config knob that gives its number of lanes. ``groups``: of a parallel loop, those whose
    tiles it goes through: each begins its first one where it begins, and what lies beyond its end is padding of its last."""

    name: str
    dim: str
    block: str
    groups: Groups | None = None

    @property
    def axis(self) -> Axis:
        return Axis(self.dim, self.name)


@dataclass(frozen=True, slots=True)
class Each:
    """A loop over every index of a dim, one at a time."""

    name: str
    dim: str


@dataclass(frozen=True, slots=True)
class Share:
    """Tiles are dealt out among the programs along ``index``: all of the dim, of which only the last can have padding; those
    before a stop; or those between two bounds. Of the first two kinds each share starts at a multiple of the block."""

    index: str
    what: Literal["dim", "beginning", "part"]


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """Sequential loop over the indices [start, stop) of ``over.dim``, or the tiles that touch them, in ascending order.

    Tile starts are multiples of the block; lanes outside [start, stop) are padding. ``carried`` are the variables
    assigned before the loop and again in it. ``part`` is what mask splitting made of it: the ``interior`` has no padding
    and no mask that depends on the tile; in ``interior`` and ``tail`` start is a multiple of the block. ``share``: the bounds
    are those of one program's share.
    ``at_start``: tiles are counted from start, wherever it is, so that only the last of them can have padding, and it may also
    reach beyond the dim (set by ``passes.starts``).
    """

    over: Tile | Each
    start: Expr
    stop: Expr
    body: tuple[Stmt, ...]
    carried: tuple[str, ...] = ()
    part: Literal["whole", "head", "interior", "tail"] = "whole"
    share: Share | None = None
    at_start: bool = False

    @property
    def aligned(self) -> bool:
        """Whether the first tile begins at start: a multiple of the block, or where tiles are counted from."""
        shared = self.share is not None and self.share.what != "part"
        return shared or self.at_start or self.part in ("interior", "tail") or self.start == scalar(0)

    @property
    def deals_dim(self) -> bool:
        """Whether all tiles of the dim are dealt out."""
        return self.share is not None and self.share.what == "dim"

    @property
    def tile(self) -> Tile:
        """Of a loop over tiles."""
        assert isinstance(self.over, Tile), f"{self.over.name} has no tiles"
        return self.over


# ------------------------------------------------------------------ kernels
@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor parameter that is present in this specialisation; its dims are symbols."""

    name: str
    dims: tuple[str, ...]
    dtype: DType
    role: Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar parameter; ``positive``: it is above zero."""

    name: str
    dtype: DType
    positive: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One specialisation of a kernel: dtypes, presence of optional arguments, static arguments and choices are fixed.

    ``grid`` are the parallel loops, outermost first; ``body`` runs once a program. ``statics`` is what it was specialised on,
    ``choices`` maps each algorithm choice that was met to its options.
    """

    name: str
    tensors: tuple[Tensor, ...]
    scalars: tuple[Scalar, ...]
    grid: tuple[Each | Tile, ...]
    body: tuple[Stmt, ...]
    choices: tuple[tuple[str, tuple[object, ...]], ...] = ()
    loc: Loc = field(default=NOWHERE, compare=False, repr=False)

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)


# ------------------------------------------------------------------ walking and rebuilding
_INNER = {kind: tuple(f.name for f in fields(kind) if "Expr" in str(f.type)) for kind in Expr.__subclasses__()}
"""The fields of each kind of expression that hold expressions."""

_PLAIN = {kind for kind in _INNER if all(f.type is Expr for f in fields(kind) if f.name in _INNER[kind])}
"""The kinds that hold one in each of these."""


def children(node: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside an expression, those that index a tensor included."""
    found = [getattr(node, name) for name in _INNER[type(node)]]
    if type(node) in _PLAIN:
        return tuple(found)
    return tuple([e for x in found for e in (x if isinstance(x, tuple) else (x,)) if isinstance(e, Expr)])


def walk(node: Expr) -> Iterator[Expr]:
    """An expression and all that is inside it, outermost first."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += children(node)[::-1]


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """The outermost expressions of a statement itself, those of a loop's body not included."""
    match stmt:
        case Assign():
            return (stmt.value,)
        case Store():
            return (*(i for i in stmt.index if isinstance(i, Expr)), stmt.value)
        case For():
            return (stmt.start, stmt.stop)
    raise AssertionError(stmt)


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements, loops before what is inside them."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, For):
            yield from statements(stmt.body)


def kept(index: "tuple[Axis | Expr, ...]") -> tuple[Axis, ...]:
    """The axes of the tile that an index names: those of its entries, each once, in the order in which they are met."""
    found = [axis for i in index for axis in ((i,) if isinstance(i, Axis) else i.type.shape)]
    return tuple(dict.fromkeys(found))


def tile_loops(body: tuple[Stmt, ...]) -> Iterator[For]:
    """The loops over tiles, outer ones before those inside them."""
    return (s for s in statements(body) if isinstance(s, For) and isinstance(s.over, Tile))


def groups(kernel: Kernel) -> dict[str, Groups]:
    """The groups that tiles of a kernel's grid keep within, by tile variable."""
    return {g.name: g.groups for g in kernel.grid if isinstance(g, Tile) and g.groups is not None}


def tiles(kernel: Kernel) -> tuple[Tile, ...]:
    """Every tile variable of a kernel: those of its grid, then those of its loops."""
    return (*(g for g in kernel.grid if isinstance(g, Tile)), *(loop.tile for loop in tile_loops(kernel.body)))


def every_expr(body: tuple[Stmt, ...]) -> Iterator[Expr]:
    """Every expression anywhere in a body."""
    for stmt in statements(body):
        for top in expressions(stmt):
            yield from walk(top)


def added(kernel: Kernel) -> tuple[str, ...]:
    """The outputs that a kernel adds to."""
    return tuple(dict.fromkeys(s.tensor for s in statements(kernel.body) if isinstance(s, Store) and s.add))


def with_children(node: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same node around other children, given in the order of ``children``."""
    if all(map(is_, new, children(node))):
        return node
    it = iter(new)
    changes: dict[str, object] = {}
    for name in _INNER[type(node)]:
        value = getattr(node, name)
        if isinstance(value, Expr):
            changes[name] = next(it)
        elif name == "index":
            changes["index"] = tuple(next(it) if isinstance(i, Expr) else i for i in value)
    return replace(node, **changes)  # type: ignore[arg-type]


def scalar(value: int, loc: Loc = NOWHERE) -> Const:
    """An i32 constant."""
    return Const(value, type=Type(i32), loc=loc)
