"""Numbers that are known before a kernel runs, treated as the kernel would treat them: IEEE 754, casts, NaN.

The front end, passes and emitters fold constants with it, so that a number means the same wherever it is computed.
"""

import math
import operator
from collections.abc import Callable

from kpt_dsl.dtypes import DType, u8

Number = float | int | bool

_FORMATS = {
    "f32": (24, -149, 3.4028234663852886e38),
    "f16": (11, -24, 65504.0),
    "bf16": (8, -133, 3.3895313892515355e38),
    "f8e4m3": (4, -9, 448.0),
    "f8e5m2": (3, -16, 57344.0),
}
"""Bits of the significand, exponent of the smallest number, and the largest (IEEE 754; OCP 8-bit floating point, 1.0)."""


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the greatest number of an integer type."""
    low = 0 if dtype == u8 else -(1 << (dtype.bits - 1))
    return low, low + (1 << dtype.bits) - 1


def converted(value: Number, dtype: DType) -> Number:
    """What a cast makes of a number. Floats round to nearest even, and fp8 saturates. Integers are made of floats by
    truncation: what is too large saturates, and NaN is 0; of integers they wrap. A condition is true of all but zero."""
    if dtype.kind == "bool":
        return bool(value != 0)
    if dtype.is_float:
        return _rounded(value, dtype)
    low, high = limits(dtype)
    if isinstance(value, float):
        return 0 if value != value else low if value <= low else high if value >= high else int(value)
    return (int(value) - low) % (1 << dtype.bits) + low


def _rounded(number: Number, dtype: DType) -> float:
    """The nearest number of a float type."""
    precision, least, largest = _FORMATS[dtype.name]
    try:
        value = float(number)
    except OverflowError:
        value = math.inf if number > 0 else -math.inf
    if math.isfinite(value):
        unit = math.ldexp(1.0, max(math.frexp(value)[1] - precision, least))
        value = math.copysign(round(value / unit) * unit, value)
    if abs(value) > largest:
        return math.copysign(largest if dtype.is_fp8 else math.inf, value)
    return value


def shortest(value: float, dtype: DType) -> float:
    """Of the numbers that a float type rounds to ``value``, one with as few decimal digits as that takes."""
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((found for found in shorter if _rounded(found, dtype) == value), value)


def larger(a: Number, b: Number) -> Number:
    """The maximum; NaN where one of them is NaN."""
    return a if a != a else b if b != b else max(a, b)


def smaller(a: Number, b: Number) -> Number:
    """The minimum; NaN where one of them is NaN."""
    return a if a != a else b if b != b else min(a, b)


def _divided(a: Number, b: Number) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _logarithm(of: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: -math.inf if x == 0 else of(x)


_OPERATIONS: dict[str, Callable[..., Number]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divided, "floordiv": operator.floordiv,
    "mod": operator.mod, "max": larger, "min": smaller, "maxnum": larger, "minnum": smaller,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": operator.not_, "neg": operator.neg, "abs": abs,
    "shl": lambda a, b: a << b if 0 <= b < 64 else 0, "shr": lambda a, b: a >> (b if 0 <= b < 64 else 63),
    "exp": math.exp, "exp2": lambda x: 2.0**x, "log": _logarithm(math.log), "log2": _logarithm(math.log2),
    "sqrt": math.sqrt, "rsqrt": lambda x: _divided(1.0, math.sqrt(x)), "tanh": math.tanh, "erf": math.erf,
    "ndtr": lambda x: 0.5 * math.erfc(x * -math.sqrt(0.5)),
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0,
    "floor": lambda x: float(math.floor(x)) if math.isfinite(x) else x, "sin": math.sin, "cos": math.cos,
    "round": lambda x: math.copysign(round(x), x) if math.isfinite(x) else x,
}  # fmt: skip


def evaluate(op: str, *values: Number) -> Number | None:
    """What an operation of the IR makes of numbers, before bits that leave the type are dropped; None for integers that are
    divided by zero."""
    try:
        return _OPERATIONS[op](*values)
    except OverflowError:  # exp, exp2
        return math.inf
    except ValueError:  # the logarithm or root of a negative number, the sine of infinity
        return math.nan
    except ZeroDivisionError:
        return None
