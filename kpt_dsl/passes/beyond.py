"""Conditions that fail wherever a loop has no element: what lies beyond its bounds then needs no mask of its own.

Causal attention stops at ``m.stop + ahead``, and a key is seen where ``n.index <= m.index + ahead``: from there on even the
last row of the tile sees none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kpt_dsl import ir
from kpt_dsl.ir import Axis, Expr
from kpt_dsl.passes import affine, fold


@dataclass(frozen=True)
class Beyond:
    """The lanes from ``stop`` on of a loop that has none before its start. ``inside``: the variables that it assigns."""

    stop: Expr
    inside: frozenset[str]

    def fails(self, condition: ir.Binary, along: affine.Lane) -> bool:
        """Whether a comparison fails in all these lanes ``along`` one of its axes, in lanes of the others that hold elements.

        In it and in ``stop`` the variables whose values are known must have given way to these.
        """
        return all(self._fails_from(end, condition, along) for end in _least_of(self.stop))

    def _fails_from(self, end: Expr, condition: ir.Binary, along: affine.Lane) -> bool:
        for farthest in (_of_tile, _of_dim):
            bound = affine.bound(condition, along, {}, self.inside, farthest)
            if bound is not None and bound.upper and any(self._at_least(end, b) for b in _least_of(bound.value)):
                return True
        return False

    def _at_least(self, a: Expr, b: Expr) -> bool:
        """Whether a >= b is seen."""
        form = affine.linear(fold.sub(a, b), {}, self.inside)
        return form is not None and form.pop(None, 0) >= 0 and not any(form.values())


def _least_of(stop: Expr) -> Iterator[Expr]:
    """What a stop is the minimum of."""
    if isinstance(stop, ir.Binary) and stop.op == "min":
        yield from _least_of(stop.a)
        yield from _least_of(stop.b)
    else:
        yield stop


def _of_tile(axis: Axis, least: bool) -> Expr:
    """Of a tile's lanes the one for which most indices fulfil a condition: at the other end than where all do."""
    return affine.extreme(axis, not least)


def _of_dim(axis: Axis, least: bool) -> Expr:
    """The same of all lanes of its dim."""
    return affine.extreme(Axis(axis.dim), not least)
