"""How many vector instructions an elementwise operation takes: one, or a sequence where the chip has no instruction for it."""

from functools import cache

_SPECIAL = 8
"""Special functions have an eighth of the lanes of plain arithmetic (16 of 128 a clock: CUDA Programming Guide, "Arithmetic
Instructions"; TPUs have one unit of theirs beside several of plain arithmetic)."""

_COUNTS = {
    "exp2": _SPECIAL, "log2": _SPECIAL, "sqrt": _SPECIAL, "rsqrt": _SPECIAL, "div": _SPECIAL,
    "exp": _SPECIAL + 1, "log": _SPECIAL + 1, "sigmoid": 2 * _SPECIAL + 2, "tanh": 2 * _SPECIAL + 4, "erf": 3 * _SPECIAL,
    "ndtr": _SPECIAL + 12, "sin": 3 * _SPECIAL, "cos": 3 * _SPECIAL, "round": 5,
}  # fmt: skip

_LONG = {"erf", "sin", "cos"}


@cache
def instructions(operations: tuple[str, ...]) -> int:
    """Of one element through all operations, in instructions of plain arithmetic."""
    return sum(_COUNTS.get(operation, 1) for operation in operations)


def is_long(operations: tuple[str, ...]) -> bool:
    """Whether one of them is a polynomial with cases: it holds words of its own beside an element."""
    return not _LONG.isdisjoint(operations)
