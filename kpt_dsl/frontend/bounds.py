"""Whether the start of a loop may lie far beyond its dim: what rounds it up to a tile must not leave int32."""

from collections.abc import Mapping, Sequence

from kpt_dsl import ir
from kpt_dsl.ir import Expr


def may_be_far(start: Expr, values: Mapping[str, Sequence[Expr]]) -> bool:
    """Whether a loaded number, or an argument, makes a bound larger. ``values``: what each variable was assigned so far.

    What is taken away makes it smaller; there the interval of an argument is looked at when it is known (``passes.ranges``).
    """

    def grows(e: Expr, sign: int, through: frozenset[str]) -> bool:
        match e:
            case ir.Load():
                return True
            case ir.Param():
                return sign > 0
            case ir.Var(name=name):
                return name in through or any(grows(v, sign, through | {name}) for v in values.get(name, ()))
            case ir.Unary(op="neg", x=x):
                return grows(x, -sign, through)
            case ir.Binary(op="sub", a=a, b=b):
                return grows(a, sign, through) or grows(b, -sign, through)
            case ir.Binary(op="min" | "max" as op, a=a, b=b):
                both = (op == "min") == (sign > 0)
                return (all if both else any)(grows(x, sign, through) for x in (a, b))
            case ir.Where(a=a, b=b):
                return grows(a, sign, through) or grows(b, sign, through)
        return any(grows(child, sign, through) for child in ir.children(e))

    return grows(start, 1, frozenset())
