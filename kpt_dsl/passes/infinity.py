"""Where minus infinity stays what it is: scaled by something positive, or with something taken away that is above it.

So a score that a mask made minus infinity is a probability of zero, and needs no other mask.
"""

import math
from collections.abc import Collection

from kpt_dsl import ir
from kpt_dsl.ir import Expr


def stays(node: ir.Binary, position: int, scales: Collection[str], above: Collection[str]) -> bool:
    """Whether ``node`` is minus infinity where its first operand is, along the axis at a position; or, all along it, NaN.

    ``scales``: scalar arguments that are positive; ``above``: variables as ``is_above`` says.
    """
    if node.op == "mul":
        return is_positive(node.b, scales)
    # A NaN taken away is one of all lanes, those that hold elements too, for it is the same along the axis.
    return node.op == "sub" and is_above(node.b, above) and (not node.b.type.shape or node.b.type.shape[position] == ir.UNIT)


def is_above(e: Expr, above: Collection[str]) -> bool:
    """Whether an expression is seen to be nowhere minus infinity."""
    match e:
        case ir.Const(value=value):
            return value > -math.inf
        case ir.Var(name=name):
            return name in above
        case ir.Expand(x=x):
            return is_above(x, above)
        case ir.Where(cond=ir.Binary(op="eq", a=tested, b=ir.Const(value=value)), a=instead, b=kept):
            return value == -math.inf and tested == kept and is_above(instead, above)
    return False


def is_positive(e: Expr, scales: Collection[str]) -> bool:
    """Whether a scalar is seen to be positive. (A product of two small numbers may round to zero.)"""
    match e:
        case ir.Param(name=name):
            return name in scales
        case ir.Const(value=value):
            return value > 0
        case ir.Binary(op="mul", a=a, b=ir.Const(value=value)):
            return value >= 1 and is_positive(a, scales)
    return False
