"""Mask splitting: a loop whose masks compare tile indices becomes an interior without masks and masked edges around it.

A mask like ``n.index <= m.index + c`` is affine, so the range of tiles on which it holds in every lane can be computed before
the loop. Causal, sliding-window and ragged kernels then pay for masks only in the few tiles that an edge crosses, and the
author wrote one loop.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from kpt_dsl import ir
from kpt_dsl.dtypes import i32
from kpt_dsl.ir import Axis, Expr, Type
from kpt_dsl.passes import affine, fold
from kpt_dsl.passes.padding import whole

_I32 = Type(i32)
_ZERO = ir.scalar(0)


@dataclass(frozen=True)
class Interior:
    """The part of a loop that needs no mask: tiles from ``start`` up to ``stop``, where tiles of the loop begin (there are none
    where start is not below stop), with a body from which the masks are gone. ``head``, ``tail``: whether tiles may come before
    it, and after it."""

    start: Expr
    stop: Expr
    body: tuple[ir.Stmt, ...]
    head: bool
    tail: bool


def _always(_: Axis) -> bool:
    return True


def split_masks(kernel: ir.Kernel, padded: Callable[[Axis], bool] = _always) -> ir.Kernel:
    """``kernel`` (guarded by ``padding``) with each masked loop split into head, interior and tail.

    ``padded``, as in ``padding.guard``, says whether the last tile of a dim may be cut short; by default any may.
    """
    return replace(kernel, body=_split_block(kernel, kernel.body, padded))


def interior(kernel: ir.Kernel, loop: ir.For, padded: Callable[[Axis], bool] = _always) -> Interior | None:
    """The mask-free part of a loop of a guarded kernel; None when nothing depends on where its tiles are cut short.

    ``padded`` as above.
    """
    axis = loop.tile.axis
    definitions = _definitions(kernel)
    inside = _named_by(loop)
    uppers: list[Expr] = []
    lowers: list[Expr] = []
    known: dict[Expr, Expr] = {}
    cut = False
    for node in ir.every_expr(loop.body):
        if isinstance(node, ir.Valid) and node.axis == axis:
            known[node] = fold.truth(True, node)
        elif isinstance(node, ir.Start | ir.Stop | ir.Count | ir.Before) and node.tile == axis.tile:
            cut = True
        elif isinstance(node, ir.Binary):
            lanes = (affine.Lane(axis, i) for i, a in enumerate(node.type.shape) if a == axis)
            bounds = filter(None, (affine.bound(node, lane, definitions, inside) for lane in lanes))
            for bound in (b for b in bounds if _stays_exact(b.value, definitions)):
                known[node] = fold.truth(True, node)
                (uppers if bound.upper else lowers).append(bound.value)
    cut = cut and (padded(axis) or not (loop.deals_dim or whole(loop)))
    if not known and not cut and not any(axis in m for m in _masked_axes(loop.body)):
        return None
    is_size = isinstance(loop.stop, ir.Size)
    stop = fold.largest(fold.smallest(loop.stop, *uppers), _ZERO) if uppers or not is_size else loop.stop
    size = ir.Size(axis.dim, type=_I32)
    # What was loaded may be anything: rounded up to a tile's start, the greatest numbers would not fit in 32 bits.
    lowers = [fold.smallest(bound, size) if isinstance(bound, ir.Load | ir.Var) else bound for bound in lowers]
    start = fold.largest(loop.start, *lowers) if lowers else loop.start
    body = tuple(_unmasked(fold.rebuild_statement(s, known), axis) for s in loop.body)
    body = fold.without_unused(body, loop.carried)
    if loop.at_start:
        first = loop.start
        if lowers:
            first = _counted(loop, fold.round_up, fold.largest(fold.smallest(loop.stop, fold.largest(*lowers)), _ZERO))
        return Interior(first, _counted(loop, fold.round_down, stop), body, head=bool(lowers), tail=True)
    head = start != _ZERO and (bool(lowers) or not loop.aligned)
    first = fold.round_up(start, loop.tile.name) if head else start
    tail = bool(uppers) or not is_size or padded(axis)
    return Interior(first, fold.round_down(stop, loop.tile.name) if tail else stop, body, head, tail)


def _counted(loop: ir.For, rounded: Callable[[Expr, str], Expr], bound: Expr) -> Expr:
    """Where a tile of a loop that counts them from its start begins at a bound, which is not negative, nor beyond the loop."""
    reached = fold.largest(fold.sub(bound, loop.start), _ZERO)
    return fold.add(loop.start, rounded(reached, loop.tile.name))


def _stays_exact(bound: Expr, definitions: dict[str, Expr]) -> bool:
    """Whether a bound cannot wrap: nothing is calculated of what only the run knows. (Of the rest ``ranges`` knows intervals.)

    ``n.index > last[b]`` holds from ``last[b] + 1`` on, but nowhere where that is the greatest of all numbers.
    """

    def loaded(e: Expr) -> bool:
        if isinstance(e, ir.Var):
            return e.name not in definitions or loaded(definitions[e.name])
        return isinstance(e, ir.Read | ir.Reduce | ir.Cast) or any(map(loaded, ir.children(e)))

    return isinstance(bound, ir.Load | ir.Var) or not loaded(bound)


def _split_block(kernel: ir.Kernel, block: tuple[ir.Stmt, ...], padded: Callable[[Axis], bool]) -> tuple[ir.Stmt, ...]:
    done: list[ir.Stmt] = []
    for stmt in block:
        if isinstance(stmt, ir.For):
            stmt = replace(stmt, body=_split_block(kernel, stmt.body, padded))
            done.extend(_split_loop(kernel, stmt, padded) if isinstance(stmt.over, ir.Tile) else [stmt])
        else:
            done.append(stmt)
    return tuple(done)


def _split_loop(kernel: ir.Kernel, loop: ir.For, padded: Callable[[Axis], bool]) -> list[ir.Stmt]:
    clear = interior(kernel, loop, padded)
    if clear is None:
        return [replace(loop, part="interior")]
    if loop.at_start and any(ir.tile_loops(loop.body)):  # beside theirs its own loads are few, and masks of these cheap
        return [replace(loop, part="tail")]
    loc, taken = loop.loc, {s.name for s in ir.statements(kernel.body) if isinstance(s, ir.Assign)}
    first, last = (ir.Var(_fresh(f"{loop.tile.name}_clear_{end}", taken), type=_I32) for end in ("start", "stop"))
    done: list[ir.Stmt] = []
    low = clear.start
    if clear.head:
        done.append(ir.Assign(first.name, clear.start, loc=loc))
        low = first
        done.append(replace(loop, stop=fold.smallest(first, loop.stop), part="head"))
    if not clear.tail:
        return [*done, replace(loop, start=low, body=clear.body, part="interior")]
    done.append(ir.Assign(last.name, fold.largest(low, clear.stop) if low != _ZERO else clear.stop, loc=loc))
    done.append(replace(loop, start=low, stop=last, body=clear.body, part="interior"))
    done.append(replace(loop, start=last, part="tail"))
    return done


def _fresh(wanted: str, taken: set[str]) -> str:
    """A variable's name that the author has not given to one."""
    return wanted if wanted not in taken else _fresh(f"{wanted}_", taken)


def _definitions(kernel: ir.Kernel) -> dict[str, Expr]:
    """Variables that are assigned exactly once in the kernel's text, and read none that is assigned again."""
    found: dict[str, Expr] = {}
    count: Counter[str] = Counter()
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.Assign):
            found[stmt.name] = stmt.value
            count[stmt.name] += 1

    def lasts(value: Expr) -> bool:
        return all(count[e.name] == 1 for e in ir.walk(value) if isinstance(e, ir.Var))

    return {name: value for name, value in found.items() if count[name] == 1 and lasts(value)}


def _named_by(loop: ir.For) -> set[str]:
    """What has other values in each step of a loop: its tile, and the variables, tiles and indices of its body."""
    inner = list(ir.statements(loop.body))
    loops = {s.over.name for s in (loop, *inner) if isinstance(s, ir.For)}
    return loops | {s.name for s in inner if isinstance(s, ir.Assign)}


# ------------------------------------------------------------------ taking masks away
def _masked_axes(body: tuple[ir.Stmt, ...]) -> list[tuple[Axis, ...]]:
    loads = [x.masked for x in ir.every_expr(body) if isinstance(x, ir.Read)]
    return loads + [s.masked for s in ir.statements(body) if isinstance(s, ir.Store)]


def _unmasked(stmt: ir.Stmt, axis: Axis) -> ir.Stmt:
    """A statement whose loads and stores need no mask along ``axis``."""
    leaf: dict[Expr, Expr] = {}
    for x in reversed([x for x in ir.every_expr((stmt,)) if isinstance(x, ir.Read) and axis in x.masked]):
        inner = ir.with_children(x, tuple(fold.rebuild(c, leaf) for c in ir.children(x)))  # an index may be loaded too
        leaf[x] = replace(inner, masked=tuple(a for a in x.masked if a != axis))  # type: ignore[call-arg]
    stmt = fold.rebuild_statement(stmt, leaf)
    if isinstance(stmt, ir.Store):
        return replace(stmt, masked=tuple(a for a in stmt.masked if a != axis))
    if isinstance(stmt, ir.For):
        return replace(stmt, body=tuple(_unmasked(s, axis) for s in stmt.body))
    return stmt
