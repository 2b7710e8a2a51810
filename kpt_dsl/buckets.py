"""Which dims of a kernel are exact in a key and which fall in buckets, read from the kernel's IR.

A dim that varies from call to call at a fixed model (batch, rows, sequence length) is bucketed; one that belongs to the
model (features, head dim) is exact. No kernel registers which is which, so a rule decides. A dim is exact when
- a program holds it whole (``x[m, :]``): the config must be legal for that very extent;
- it belongs to weights: an input that lacks the batch, the leading dim of the first tensor but tables, in which elements are
  looked up along it (linear's N and K, a norm's N);
- a program walks along all of it and stores along it too: the width of a row (a norm or softmax in several passes). What it
  adds to is no row of its own;
- what was loaded says which of it is meant, beside the batch: by looking up an element there, or where it equals an index (the
  classes of a loss).
Attention: D exact; B, H, G, M, N bucketed. Linear: N, K exact; M bucketed. Norms: N exact; M bucketed.
Knows no device and no op.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kpt_dsl import ir
from kpt_dsl.same import remembered


class Span(NamedTuple):
    """Extents ``low`` to ``high``, both included; an exact extent has ``low == high``."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Of ``"4096"`` or ``"2049..4096"``. Raises ValueError."""
        low, _, high = text.partition("..")
        return cls(int(low), int(high or low))


def bucket(extent: int) -> Span:
    """The bucket of an extent: above one power of two, up to the next."""
    if extent <= 2:
        return Span(extent, extent)
    high = 1 << (extent - 1).bit_length()
    return Span(high // 2 + 1, high)


@remembered(1024)
def exact_dims(kernel: ir.Kernel) -> frozenset[str]:
    """The dims whose extents stand exactly in a key."""
    axes = {axis for e in ir.every_expr(kernel.body) for axis in e.type.shape}
    whole = {axis.dim for axis in axes if axis.tile is None and axis != ir.UNIT}
    batch = _batch(kernel)
    weights = {dim for t in kernel.tensors if t.role == "in" and batch not in t.dims for dim in t.dims}
    walked = {s.over.dim for s in ir.statements(kernel.body) if isinstance(s, ir.For) and not s.share}
    added = ir.added(kernel)
    stored = {dim for t in kernel.tensors if t.role == "out" and t.name not in added for dim in t.dims}
    # Of rows that lie in groups each program walks along one; how many there are, and how many groups, varies.
    groups = ir.groups(kernel)
    grouped = {g.dim for g in groups.values()} | {g.dim for g in kernel.grid if g.name in groups}
    return frozenset(whole | (weights | (walked & stored)) - grouped | _classes(kernel))


@remembered(1024)
def fixed_dims(kernel: ir.Kernel) -> frozenset[str]:
    """The dims that have one extent in a class: the exact ones; those of any tensor that lacks the batch (gradients of weights,
    shares of a sum); and those that indices are computed of (heads that share keys), seen to be right for one extent only."""
    batch = _batch(kernel)
    groups = {g.index: g.dim for g in ir.groups(kernel).values()}
    found = {dim for t in kernel.tensors if batch not in t.dims for dim in t.dims} - {*groups.values()}
    loops = [*kernel.grid, *(s.over for s in ir.statements(kernel.body) if isinstance(s, ir.For))]
    dim_of = {loop.name: loop.dim for loop in loops}
    for access in _accesses(kernel):
        indexed = zip(access.index, kernel.tensor(access.tensor).dims, strict=True)
        looked_up = {dim for i, dim in indexed if isinstance(i, ir.Expr) and i.type.shape}
        for index in access.index:
            for e in () if isinstance(index, ir.Axis | ir.Index) else _computed_of(kernel, index):
                match e:
                    case ir.Size(dim=dim):
                        found.add(dim)
                    case ir.Lanes(axis=ir.Axis(dim=dim)):
                        found |= {dim, *looked_up}
                    case ir.Index(name=name) if name not in groups:
                        found.add(dim_of[name])
    return exact_dims(kernel) | found


def spans(kernel: ir.Kernel, dims: Mapping[str, int]) -> dict[str, Span]:
    """What the extents of a class with these dims lie within."""
    fixed = fixed_dims(kernel)
    return {dim: Span(extent, extent) if dim in fixed else bucket(extent) for dim, extent in dims.items()}


HALVED_FROM, HALVED_TO = 1024, 2048
"""Buckets of a kernel of one product are two classes from this upper end on; those along tiles of a chain up to the other. Over
1500 keys attention took 1.1 to 1.25 times as long under the config that is best for 2048, on an H200 (head dim 64, causal)."""
SMALLEST_TILE = 16
"""Of a product, along any of its dims: no shorter part of a bucket is a class."""


def class_spans(kernel: ir.Kernel, dims: Mapping[str, int]) -> dict[str, Span]:
    """What the extents lie within that have one first config: these spans, some in halves. Of one product large ones: how well
    its tiles fill a device goes up and down with their number; that of a chain of products hardly does. Of a chain short ones:
    its loops make a few steps, and what the last of these leaves over is much of them."""
    found, products = spans(kernel, dims), _products(kernel)
    if products > 1:
        tiled = {tile.dim for tile in ir.tiles(kernel)}
        halved = {dim for dim, (_, high) in found.items() if dim in tiled and SMALLEST_TILE * 4 <= high <= HALVED_TO}
    else:
        halved = {dim for dim, (_, high) in found.items() if products and high >= HALVED_FROM}
    return {dim: _half(span, dims[dim]) if dim in halved else span for dim, span in found.items()}


def _half(span: Span, extent: int) -> Span:
    low, high = span
    if low == high:
        return span
    middle = high * 3 // 4
    return Span(low, middle) if extent <= middle else Span(middle + 1, high)


@remembered(1024)
def _products(kernel: ir.Kernel) -> int:
    return sum(isinstance(e, ir.Dot) for e in ir.every_expr(kernel.body))


def _classes(kernel: ir.Kernel) -> set[str]:
    """Dims of which elements are meant by what was loaded. They belong to a model; and of a dim that varies a text is told
    nothing, so a GPU reads its masked rows element by element. A gradient of 16384 x 50304 in bf16 took an H200 1,701 us so,
    and 841 in tiles that divide the row."""
    found, batch = set(), _batch(kernel)
    for e in ir.every_expr(kernel.body):
        if isinstance(e, ir.Gather) and batch in (dims := kernel.tensor(e.tensor).dims):
            picked = [isinstance(i, ir.Expr) and _reads(_computed_of(kernel, i)) for i in e.index]
            found |= {dim for dim, p in zip(dims, picked, strict=True) if p}
        elif isinstance(e, ir.Binary) and e.op == "eq":
            sides = [list(_computed_of(kernel, side)) for side in ir.children(e)]
            for place, other in (sides, sides[::-1]):
                if not _reads(place) and _reads(other):
                    found |= {p.axis.dim for p in place if isinstance(p, ir.Lanes)}
    return found


def _reads(parts: Iterable[ir.Expr]) -> bool:
    return any(isinstance(part, ir.Read) for part in parts)


def _batch(kernel: ir.Kernel) -> str | None:
    """The leading dim of the first tensor in which no elements are looked up along it."""
    tables = {e.tensor for e in ir.every_expr(kernel.body) if isinstance(e, ir.Gather) and isinstance(e.index[0], ir.Expr)}
    return next((t.dims[0] for t in kernel.tensors if t.dims and t.name not in tables), None)


def _computed_of(kernel: ir.Kernel, e: ir.Expr) -> Iterator[ir.Expr]:
    """What an expression is computed of, through variables, each once. What it is loaded by is another access's."""
    todo, met, values = [e], set(), _assigned(kernel)
    while todo:
        yield (e := todo.pop())
        if isinstance(e, ir.Var) and e.name not in met:
            met.add(e.name)
            todo += values.get(e.name, ())
        if not isinstance(e, ir.Read):
            todo += ir.children(e)


@remembered(1024)
def _assigned(kernel: ir.Kernel) -> Mapping[str, list[ir.Expr]]:
    """All that each variable is ever made."""
    values: dict[str, list[ir.Expr]] = {}
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.Assign):
            values.setdefault(stmt.name, []).append(stmt.value)
    return values


def _accesses(kernel: ir.Kernel) -> list[ir.Read | ir.Store]:
    loads: list[ir.Read | ir.Store] = [e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Read)]
    return [*loads, *(s for s in ir.statements(kernel.body) if isinstance(s, ir.Store))]
