"""Conditions that compare tile indices, as bounds: ``n.index <= m.index + c`` holds for all rows below ``m.start + c + 1``."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from kpt_dsl import ir
from kpt_dsl.dtypes import i32
from kpt_dsl.ir import Axis, Expr, Type
from kpt_dsl.passes import fold

_I32 = Type(i32)


@dataclass(frozen=True, slots=True)
class Lane:
    """The index along one axis of a value: its position tells it from another along the same axis (n by n)."""

    axis: Axis
    position: int


Form = Counter[Expr | Lane | None]
"""Whole multiples of lanes and scalars; the key None counts ones."""


@dataclass(frozen=True)
class Bound:
    """The condition holds in every lane when all indices are below ``value`` (upper), or at least ``value`` (lower)."""

    upper: bool
    value: Expr


def extreme(axis: Axis, least: bool) -> Expr:
    """The least or greatest valid lane of an axis."""
    if axis.tile is None:
        return ir.scalar(0) if least else fold.sub(ir.Size(axis.dim, type=_I32), ir.scalar(1))
    if least:
        return ir.Start(axis.tile, type=_I32)
    return fold.sub(ir.Stop(axis.tile, type=_I32), ir.scalar(1))


def bound(
    node: ir.Binary,
    along: Lane,
    definitions: Mapping[str, Expr],
    inside: Collection[str],
    lane: Callable[[Axis, bool], Expr] = extreme,
) -> Bound | None:
    """What a comparison of indices says of those ``along`` one of its axes; None when it is nothing so simple.

    ``definitions`` and ``inside``: as in ``linear``; lanes of tiles that are named ``inside`` make no bound. ``lane`` gives the
    lane of another axis, the least one if told so or the greatest, that makes the bound the tightest.
    """
    if node.op not in ("lt", "le", "gt", "ge") or node.a.type.dtype != i32:
        return None
    left, right = (linear(x, definitions, inside) for x in (node.a, node.b))
    if left is None or right is None:
        return None
    form = Counter(left)
    form.subtract(right)
    sign = form.pop(along, 0)
    if sign not in (1, -1):
        return None
    # sign * index + rest (op) 0, brought to index < value or index >= value.
    upper = (node.op in ("lt", "le")) == (sign == 1)
    strict = node.op in ("lt", "gt")
    shift = (0 if strict else 1) if upper else (1 if strict else 0)
    value: Expr = ir.scalar(shift)
    for term, count in form.items():
        factor = -sign * count
        if factor:
            if isinstance(term, Lane):
                if term.axis.tile in inside:
                    return None
                one = lane(term.axis, (factor > 0) == upper)
            else:
                one = ir.scalar(1) if term is None else term
            value = fold.add(value, fold.scale(one, factor)) if factor != -1 else fold.sub(value, one)
    return Bound(upper, value)


def linear(x: Expr, definitions: Mapping[str, Expr], inside: Collection[str]) -> Form | None:
    """``x`` as a form; None when it is nothing so simple. ``inside``: the names of what a loop assigns and of the tiles and
    indices that it goes through, whose values are no terms. Tiles, and variables assigned inside, stand for their
    ``definitions``; those without one are not looked through."""
    match x:
        case ir.Const(value=value):
            return Counter({None: int(value)})
        case ir.Lanes(axis=axis):
            return Counter({Lane(axis, 0): 1})
        case ir.Expand(x=inner, axis=at):
            part = linear(inner, definitions, inside)
            return None if part is None else _moved(part, lambda position: position + (position >= at))
        case ir.Transpose(x=inner):
            part = linear(inner, definitions, inside)
            return None if part is None else _moved(part, lambda position: 1 - position)
        case ir.Unary(op="neg", x=inner):
            negated: Form = Counter()
            part = linear(inner, definitions, inside)
            if part is None:
                return None
            negated.subtract(part)
            return negated
        case ir.Binary(op="add" | "sub" as op, a=a, b=b):
            left, right = linear(a, definitions, inside), linear(b, definitions, inside)
            if left is None or right is None:
                return None
            total = Counter(left)
            (total.update if op == "add" else total.subtract)(right)
            return total
        case ir.Var(name=name) if x.type.shape or name in inside:
            return linear(definitions[name], definitions, inside) if name in definitions else None
    if x.type.shape or any(_names(y) in inside for y in ir.walk(x)):
        return None
    return Counter({x: 1})


def _moved(form: Form, to: Callable[[int], int]) -> Form:
    """A form whose lanes stand at other positions."""
    return Counter({Lane(x.axis, to(x.position)) if isinstance(x, Lane) else x: n for x, n in form.items()})


def _names(x: Expr) -> str | None:
    """The variable, tile or index whose value an expression is; how many lanes a tile has never changes."""
    match x:
        case ir.Var(name=name) | ir.Index(name=name):
            return name
        case ir.Start(tile=name) | ir.Stop(tile=name) | ir.Count(tile=name) | ir.Before(tile=name):
            return name
    return None
